// A product of matrices, tile by tile: what the kernels of conv.cu are made of.
//
// A block computes a tile of ROWS x COLUMNS. It copies K terms of A's rows and B's columns to shared memory (Tile), where
// all its threads read them, and copies further terms while it multiplies (Sums). Where float32 may be rounded to TF32,
// a warp multiplies (16, 8) by (8, 8) pieces at once on the tensor cores (mma).

constexpr int K = 64 / sizeof(real), ROWS = 512 / sizeof(real), THREADS = 128;
constexpr int RESIDENT = 2;  // blocks on a processor: 255 registers for each thread

#if TF32 && (defined(CUDA_ON_CPU) || __CUDA_ARCH__ >= 800)
#define TENSOR_CORES
constexpr int STAGES = 3;  // tiles of each matrix: 48 KB of shared memory at most, which any GPU has twice
constexpr int WIDEST = 128;
constexpr int RESIDENT_64 = 3;  // of outer_64 and gather_64: the compiler would take a few registers too many for three
#else
constexpr int STAGES = 2;
constexpr int WIDEST = 64;  // more columns would not fit into registers: the kernels for 128 are not launched
constexpr int RESIDENT_64 = RESIDENT;
#endif

#define LANE (threadIdx.x % WARP)

struct Place { long long y, rest; };  // where a row of the product begins in y, and what is added to it in the rest
#define NOWHERE Place{-1, -1}

struct alignas(16) Four { real v[4]; };  // what a thread copies at once, from neighbouring addresses

// Whether rows of this length, from p on, consist of such fours.
__device__ inline bool in_fours(const real* p, int length) { return length % 4 == 0 && (size_t)p % 16 == 0; }

// *to = *from, or zeros. Copies belong to the group that the next end_group() ends. They are done, for the thread that
// started them, after a wait_for_all_but(groups) that does not except theirs: a GPU of sm_80 copies while it computes.
template <class T>
__device__ void start_copy(T* to, const T* from, bool wanted) {
#ifdef CUDA_ON_CPU
  emulated::start_copy(to, from, wanted);
#elif __CUDA_ARCH__ >= 800
  constexpr int bytes = sizeof(T) < 16 ? sizeof(T) : 16;
#pragma unroll
  for (int i = 0; i < sizeof(T); i += bytes)
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"((unsigned)__cvta_generic_to_shared(to) + i),
                 "l"((const char*)from + i), "n"(bytes), "r"(wanted ? bytes : 0)
                 : "memory");
#else
  *to = wanted ? *from : T{};
#endif
}
__device__ inline void end_group() {
#ifdef CUDA_ON_CPU
  emulated::end_group();
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int GROUPS>
__device__ void wait_for_all_but() {
#ifdef CUDA_ON_CPU
  emulated::wait_for_all_but(GROUPS);
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
#endif
}

// v, in a register from here on: the compiler would find it again each time, in several instructions.
__device__ inline int kept(int v) {
#ifndef CUDA_ON_CPU
  asm volatile("" : "+r"(v));
#endif
  return v;
}

#ifdef TENSOR_CORES
// v, or with relu max(v, 0), where a NaN stays one, rounded to TF32's 10 bits of mantissa. To nearest; only what is as
// near to two may differ from GPU to GPU.
__device__ inline unsigned to_tf32(float v, bool relu) {
#ifdef CUDA_ON_CPU
  return emulated::to_tf32(relu && v < 0 ? 0 : v);
#else
  unsigned bits;
#if __CUDA_ARCH__ >= 900
  if (relu) asm("cvt.rn.relu.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
  else asm("cvt.rn.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));  // one instruction there, where the other one is two
#else
  if (relu) asm("max.NaN.f32 %0, %0, 0f00000000;" : "+f"(v));
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
#endif
  return bits;
#endif
}

// Four 8x8 matrices of 16-bit numbers, which serve as (8, 4) of 32 bits: lane 8 i + r says where row r of matrix i
// begins, and lane 4 g + t gets element (g, t) of matrix i in d[i].
__device__ inline void load_matrices(unsigned (&d)[4], const Four* row) {
#ifdef CUDA_ON_CPU
  emulated::ldmatrix(d, row);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"((unsigned)__cvta_generic_to_shared(row))
               : "memory");
#endif
}

// d += a b by a warp: a is (16, 8), b (8, 8), d (16, 8); lane 4 g + t holds a[i] = A[g + 8 (i % 2)][t + 4 (i / 2)],
// b[i] = B[t + 4 i][g] and d[i] = D[g + 8 (i / 2)][2 t + i % 2].
__device__ inline void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef CUDA_ON_CPU
  emulated::mma_tf32(d, a, b);
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
#endif

// K terms of LINES rows of A, or columns of B. DEEP: neighbours in memory, and in a thread's Four, are neighbours in k;
// else they are neighbouring lines. Fours lie where the exclusive or puts them, so that what a warp reads together is
// in different banks. A thread copies the Fours (line(0), k()), (line(1), k()), ... if it `copies` any.
template <int LINES, bool DEEP>
struct Tile {
  static constexpr int ACROSS = DEEP ? K / 4 : LINES / 4;                           // Fours in a row
  static constexpr int SIDE = ACROSS < THREADS / K ? ACROSS : THREADS / K;          // threads side by side at a row
  static constexpr int BUSY = DEEP ? (LINES < THREADS / ACROSS ? LINES * ACROSS : THREADS) : K * SIDE;
  static constexpr int EACH = LINES * K / 4 / BUSY;                                 // Fours of a thread
  Four value[LINES * K / 4];

  __device__ static bool copies() { return BUSY == THREADS || threadIdx.x < BUSY; }
  __device__ static int k() { return DEEP ? threadIdx.x % ACROSS * 4 : threadIdx.x / SIDE; }
  __device__ static int line(int i) {
    return DEEP ? threadIdx.x / ACROSS + i * (BUSY / ACROSS) : (threadIdx.x % SIDE + i * SIDE) * 4;
  }
  __device__ static int place(int line, int k) {  // of a Four
    if (DEEP) return line * ACROSS + (k / 4 ^ line / 2 % ACROSS);
    return k * ACROSS + (ACROSS < 8 ? line / 4 : line / 4 ^ 2 * (k % 4));
  }
  // That of the thread's i-th, from its first one's: neither exclusive or sees the step.
  __device__ Four& own(int first, int i) { return value[first + i * (DEEP ? BUSY : SIDE)]; }
  __device__ real at(int line, int k, bool relu) const {
    real v = value[place(line, k)].v[DEEP ? k % 4 : line % 4];
    return relu && v < 0 ? real(0) : v;  // a NaN stays one
  }

#ifdef TENSOR_CORES
  // Where a lane's numbers lie if they are for k = 0, 8 (DEEP: places), or for lines from 0, 8, 16 and 24 on.
  struct Lane {
    int at[DEEP ? K / 8 : 4];

    __device__ explicit Lane(bool line_first) {
      int matrix = LANE / 8, second_line = line_first ? matrix % 2 : matrix / 2, second_term = matrix % 2 + matrix / 2;
      second_term -= second_line;
#pragma unroll
      for (int q = 0; q < (DEEP ? K / 8 : 4); q++)
        at[q] = kept(DEEP ? place((second_line * 8 + LANE % 8) % LINES, q * 8 + second_term * 4)
                          : place((q * 8 + LANE / 4) % LINES, LANE % 4) * 4 + LANE / 4 % 4);
    }
  };

  // Four numbers for mma: with 4 g + t the lane, of lines g and g + 8 after first + line and of terms t and t + 4
  // after k. The line changes first, or the term does, as the lane was made. `first` is a multiple of 32; line and k
  // are known to the compiler. (A tile of 8 lines repeats them.)
  __device__ void load(unsigned (&bits)[4], const Lane& lane, int first, int line, int k, bool line_first,
                       bool relu) const {
    if constexpr (DEEP) load_matrices(bits, &value[(first + line) * ACROSS + lane.at[k / 8]]);
#pragma unroll
    for (int e = 0; e < 4; e++) {
      if constexpr (DEEP) bits[e] = to_tf32(__uint_as_float(bits[e]), relu);
      else {
        int l = (line + 8 * (line_first ? e % 2 : e / 2)) % LINES, term = k + 4 * (line_first ? e / 2 : e % 2);
        bits[e] = to_tf32(((const real*)value)[term * LINES + first + l / 32 * 32 + lane.at[l / 8 % 4]], relu);
      }
    }
  }
#endif
};

// A thread's part of the block's tile of the product. Each warp has a rectangle of (16, 8) pieces, laid out as in mma.
template <int COLUMNS>
struct Sums {
  static constexpr int ACROSS = COLUMNS > 32 ? 2 : 1, DOWN = THREADS / WARP / ACROSS;  // warps
  static constexpr int HIGH = ROWS / DOWN / 16, WIDE = COLUMNS / ACROSS / 8;           // pieces of a warp
  real value[HIGH][WIDE][4] = {};

  int first_row = kept(threadIdx.x / WARP / ACROSS * HIGH * 16);  // of this warp
  int first_column = kept(threadIdx.x / WARP % ACROSS * WIDE * 8);

  __device__ int row(int i) const { return first_row + i / 2 * 16 + LANE / 4 + i % 2 * 8; }  // of the 2 HIGH
  __device__ int column(int j) const { return first_column + j * 8 + LANE % 4 * 2; }         // and the one after it

#ifdef TENSOR_CORES
  template <class A, class B>
  __device__ void add_product(const A& a, const B& b, bool relu, const typename A::Lane& of_a,
                              const typename B::Lane& of_b) {
#pragma unroll
    for (int k = 0; k < K; k += 8) {
      unsigned as[4], bs[(WIDE + 1) / 2][2][2];
#pragma unroll
      for (int j = 0; j < WIDE; j += 2) {
        unsigned four[4];
        b.load(four, of_b, first_column, j * 8, k, false, false);
        for (int e = 0; e < 4; e++) bs[j / 2][e / 2][e % 2] = four[e];
      }
#pragma unroll
      for (int i = 0; i < HIGH; i++) {
        a.load(as, of_a, first_row, i * 16, k, true, relu);
#pragma unroll
        for (int j = 0; j < WIDE; j++) mma(value[i][j], as, bs[j / 2][j % 2]);
      }
    }
  }
#else
  template <class A, class B>
  __device__ void add_product(const A& a, const B& b, bool relu) {
#pragma unroll 4
    for (int k = 0; k < K; k++) {
      real as[HIGH][2], bs[WIDE][2];
#pragma unroll
      for (int i = 0; i < 2 * HIGH; i++) as[i / 2][i % 2] = a.at(row(i), k, relu);
#pragma unroll
      for (int j = 0; j < 2 * WIDE; j++) bs[j / 2][j % 2] = b.at(column(j / 2) + j % 2, k, false);
#pragma unroll
      for (int i = 0; i < HIGH; i++)
#pragma unroll
        for (int j = 0; j < 4 * WIDE; j++) value[i][j / 4][j % 4] += as[i][j % 4 / 2] * bs[j / 4][j % 2];
    }
  }
#endif

  // All `chunks` of K terms. While one is multiplied, STAGES - 1 others are copied. source.fill(a, b) starts to copy
  // what it is at, and goes on by K terms. With source.relu() max(A, 0) is read for A. also(b) is called with each of
  // B's tiles.
  template <class Source, class A, class B, class Also>
  __device__ void add_products(Source source, int chunks, A (&as)[STAGES], B (&bs)[STAGES], Also also) {
    for (int chunk = 0; chunk < STAGES - 1; chunk++) {
      if (chunk < chunks) source.fill(as[chunk], bs[chunk]);
      end_group();
    }
#ifdef TENSOR_CORES
    typename A::Lane of_a(true);
    typename B::Lane of_b(false);
#endif
    int from = 0, to = STAGES - 1;
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; chunk++) {
      wait_for_all_but<STAGES - 2>();
      __syncthreads();  // all threads' copies are there, and what was read before this chunk may be written over
      if (chunk + STAGES - 1 < chunks) source.fill(as[to], bs[to]);
      end_group();
#ifdef TENSOR_CORES
      add_product(as[from], bs[from], source.relu(), of_a, of_b);
#else
      add_product(as[from], bs[from], source.relu());
#endif
      also(bs[from]);
      from = from + 1 == STAGES ? 0 : from + 1;
      to = to + 1 == STAGES ? 0 : to + 1;
    }
  }

  // Stores the rows of the tile, O columns each, at where(row) of y, if that is not NOWHERE. If there is a gate, which
  // lies as y does, sums are 0 unless it is positive. Then the bias and the rest are added, if there are any.
  template <class Where>
  __device__ void store(real* y, int O, const real* bias, const real* rest, const real* gate, Where where) const {
    struct alignas(2 * sizeof(real)) Pair { real v[2]; };
    bool in_pairs = O % 2 == 0 && ((size_t)rest | (size_t)gate) % sizeof(Pair) == 0;  // y is an array's beginning
    real added[WIDE][2];
#pragma unroll
    for (int j = 0; j < 2 * WIDE; j++) {
      int o = blockIdx.y * COLUMNS + column(j / 2) + j % 2;
      added[j / 2][j % 2] = bias && o < O ? bias[o] : real(0);
    }
#pragma unroll
    for (int i = 0; i < 2 * HIGH; i++) {
      Place at = where(row(i));
      if (at.y < 0) continue;
#pragma unroll
      for (int j = 0; j < WIDE; j++) {
        int o = blockIdx.y * COLUMNS + column(j);
        const real* v = &value[i / 2][j][i % 2 * 2];
        auto completed = [&](int e, real open, real more) { return (open > 0 ? v[e] : real(0)) + added[j][e] + more; };
        if (in_pairs) {
          if (o >= O) continue;
          Pair open = gate ? *(const Pair*)(gate + at.y + o) : Pair{1, 1};
          Pair more = rest ? *(const Pair*)(rest + at.rest + o) : Pair{};
          *(Pair*)(y + at.y + o) = {completed(0, open.v[0], more.v[0]), completed(1, open.v[1], more.v[1])};
        } else
          for (int e = 0; e < 2 && o + e < O; e++) {
            real open = gate ? gate[at.y + o + e] : real(1), more = rest ? rest[at.rest + o + e] : real(0);
            y[at.y + o + e] = completed(e, open, more);
          }
      }
    }
  }
};

// A thread's part of the sums of the columns of B's tiles: of a Four of them, in every DOWN-th row.
template <int COLUMNS>
struct ColumnSums {
  static constexpr int ACROSS = COLUMNS / 4, DOWN = THREADS / ACROSS < K ? THREADS / ACROSS : K;
  using TileB = Tile<COLUMNS, false>;
  Four value = {};
  int at = kept(TileB::place(threadIdx.x % ACROSS * 4, threadIdx.x / ACROSS));

  __device__ void add(const TileB& b) {
    if (threadIdx.x < ACROSS * DOWN)
#pragma unroll
      for (int k = 0; k < K / DOWN; k++) {
        Four four = b.value[at + k * DOWN * ACROSS];
        for (int e = 0; e < 4; e++) value.v[e] += four.v[e];
      }
  }

  // Stores the sums of the first `columns` at y. `shared` has room for a Four of each thread, and is read no more.
  __device__ void store(real* y, int columns, Four* shared) const {
    __syncthreads();  // all have read the tiles
    shared[threadIdx.x] = value;
    __syncthreads();
    real sum = 0;
    if (threadIdx.x < COLUMNS && threadIdx.x < columns) {
      for (int k = 0; k < DOWN; k++) sum += shared[k * ACROSS + threadIdx.x / 4].v[threadIdx.x % 4];
      y[threadIdx.x] = sum;
    }
  }
};
