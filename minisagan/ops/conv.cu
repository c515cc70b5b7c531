// The primitives of conv.py on the GPU. From the equation to the kernel it is four steps:
//
// 1. The naive sum: a thread for each output adds up what its taps see. That is a product of matrices, where A, what
//    the taps see of x (zero outside of the image), is looked up and never written to memory ("implicit GEMM"):
//
//      gather    y[p, o]  = bias[o] + sum_k  A[p, k] B[k, o]   p: output pixels     k: (tap, channel)   B: the weights
//      outer     dw[m, o] =           sum_p  A[m, p] B[p, o]   m: (tap, channel)    p: output pixels    B: the cotangent
//                db[o]    =           sum_p          B[p, o]
//
//    scatter is s x s gathers: outputs with the same h mod s and w mod s use only every s-th tap (struct Axis).
// 2. The tiled product: a block computes a tile of ROWS x COLUMNS. It copies K terms of A's rows and B's columns to
//    shared memory (Tile), where all its threads read them, and copies further terms while it multiplies (Sums).
// 3. Few addresses: a thread always copies the same place of a tile. What it sees of x is its pixel's address plus its
//    term's offset, and whether that lies inside of the image is one test of bits that were made before the loop.
// 4. Tensor cores: where float32 may be rounded to TF32, a warp multiplies (16, 8) by (8, 8) pieces at once (mma).
//
// What was chosen for speed has not been measured: there was no GPU. It is counted in the machine code
// (tests/machine_code.py): instructions of the loop for each product on the tensor cores.

struct Shape {  // comes by value, as part of the launch
  int N, H, W, C, Ho, Wo, O, kh, kw, stride, top, left;  // (N, H, W, C) is x, (N, Ho, Wo, O) is y or g
  int relu;             // whether max(x, 0) is read for x
  int scatter, turned;  // in gather: which of the two; whether w is turned by 180 degrees
  int small;            // in gather: whether the rest has half y's height and width
  int slots, each;      // in outer: partial sum z is of slot z mod slots, and of `each` pixels of its images
};

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

// Whether taps i of one axis, which see first + way i, see pixels from 0 to size - 1: a bit for each.
__device__ inline unsigned seen(int first, int way, int taps, int size) {
  int from = max(0, way > 0 ? -first : first - size + 1), to = min(taps, way > 0 ? size - first : first + 1);
  return to > from ? (1u << to) - (1u << from) : 0;
}

// Bits of taps (i, j): those of i, and those of j from J on. OUTSIDE is no tap's: conv_cuda.py sees to it.
constexpr int J = 16;
constexpr unsigned OUTSIDE = 1u << 31;
__device__ inline unsigned tap_bits(int i, int j) { return 1u << i | 1u << (J + j); }

// ---- gather, and scatter as its s x s gathers

// What happens along one axis, height or width. Output  stride h + parity, for h < size, is the sum over m < taps of
// input  step h + first + way m  times tap  tap + tap_step m. `before` is the padding, `turned` w's by 180 degrees.
struct Axis {
  int stride, parity, size, step, first, way, taps, tap, tap_step;

  __device__ Axis(int s, int before, int kernel, int output, int parity, bool scatter, bool turned)
      : stride(scatter ? s : 1), parity(parity), step(scatter ? 1 : s), way(scatter ? -1 : 1) {
    size = (output - parity + stride - 1) / stride;
    first = scatter ? (parity + before) / s : -before;
    tap = scatter ? (parity + before) % s : 0;
    taps = (kernel - tap + stride - 1) / stride;
    tap_step = turned ? -stride : stride;
    if (turned) tap = kernel - 1 - tap;
  }
};

// A term of the sum over taps (i, j) and channels group + c. Channels come in groups of `depth`, K or all C, with all
// taps of one group before the next group: neighbouring taps see the same pixels, which are then still in L1.
struct Term {
  int depth, height, width, group, i, j, c;

  __device__ void advance(int terms) {
    for (c += terms; c >= depth; c -= depth)
      if (++j == width) {
        j = 0;
        if (++i == height) i = 0, group += depth;
      }
  }
};

// A is what the taps of ROWS output pixels see of x; B is w, (kh, kw, C, O) or, for a DEEP tile, (kh, kw, O, C). With
// A_FOURS and B_FOURS they are copied by Fours, and RELU says whether max(x, 0) is read for x; else number by number,
// and s.relu is asked.
template <int COLUMNS, bool DEEP, bool A_FOURS, bool B_FOURS, bool RELU = false>
struct Gather {
  using TileA = Tile<ROWS, true>;
  using TileB = Tile<COLUMNS, DEEP>;
  int C, O, x_row, x_column, w_row, w_column;  // and the steps from tap to tap
  Term of_a, of_b;                             // of the first number that this thread copies
  const real *x[TileA::EACH], *w;              // what the first tap sees, channel 0; the first tap's weights
  unsigned inside[TileA::EACH];                // the taps' bits
  bool asked;                                  // s.relu
  int to_a = kept(TileA::place(TileA::line(0), TileA::k())), to_b = kept(TileB::place(TileB::line(0), TileB::k()));

  __device__ Gather(const real* images, const real* weights, const Shape& s, const Axis& vertical,
                    const Axis& horizontal)
      : C(s.C), O(s.O), x_row(vertical.way * s.W * s.C), x_column(horizontal.way * s.C),
        w_row(vertical.tap_step * s.kw * s.C * s.O), w_column(horizontal.tap_step * s.C * s.O),
        of_a{s.C % K ? s.C : K, vertical.taps, horizontal.taps, 0, 0, 0, 0}, of_b(of_a),
        w(weights + (vertical.tap * s.kw + horizontal.tap) * s.C * s.O), asked(s.relu) {
    of_a.advance(TileA::k());
    of_b.advance(TileB::k());
    for (int i = 0; i < TileA::EACH; i++) {
      int p = blockIdx.x * ROWS + TileA::line(i), row = p / horizontal.size, image = row / vertical.size;
      int top = row % vertical.size * vertical.step + vertical.first;
      int left = p % horizontal.size * horizontal.step + horizontal.first;
      x[i] = images + (long long)image * (s.H * s.W * s.C) + (top * s.W + left) * s.C;
      inside[i] = image >= s.N ? 0
                               : seen(top, vertical.way, vertical.taps, s.H) |
                                     seen(left, horizontal.way, horizontal.taps, s.W) << J;
    }
  }

  __device__ bool relu() const { return A_FOURS && B_FOURS ? RELU : asked; }

  __device__ void fill(TileA& a, TileB& b) {
    for (int e = 0; e < (A_FOURS ? 1 : 4); e++) {
      Term at = of_a;
      if (e) at.advance(e);
      int offset = at.i * x_row + at.j * x_column + at.group + at.c;
      unsigned needed = at.group < C ? tap_bits(at.i, at.j) : OUTSIDE;
#pragma unroll
      for (int i = 0; i < TileA::EACH; i++) {
        Four& to = a.own(to_a, i);
        bool wanted = !(needed & ~inside[i]);
        if (A_FOURS) start_copy(&to, (const Four*)(x[i] + offset), wanted);
        else start_copy(&to.v[e], x[i] + offset, wanted);
      }
    }
    if (TileB::copies())
      for (int e = 0; e < (B_FOURS ? 1 : 4); e++) {
        Term at = of_b;
        if (DEEP && e) at.advance(e);
        int o = blockIdx.y * COLUMNS + TileB::line(0) + (DEEP ? 0 : e), c = at.group + at.c;
        const real* from = w + at.i * w_row + at.j * w_column + (DEEP ? o * C + c : c * O + o);
#pragma unroll
        for (int i = 0; i < TileB::EACH; i++) {
          Four& to = b.own(to_b, i);
          int further = TileB::line(i) - TileB::line(0);
          bool wanted = c < C && o + further < O;
          if (B_FOURS) start_copy(&to, (const Four*)(from + further * (DEEP ? C : 1)), wanted);
          else start_copy(&to.v[e], from + further * (DEEP ? C : 1), wanted);
        }
      }
    of_a.advance(K);
    of_b.advance(K);
  }
};

// blockIdx: x for pixels, y for channels of the output, z for the remainders of its pixels mod s in scatter.
template <int COLUMNS, bool DEEP>
__device__ void gather(const real* x, const real* w, const real* bias, const real* rest, const real* gate, real* y,
                       const Shape& s) {
  Axis vertical(s.stride, s.top, s.kh, s.Ho, blockIdx.z / s.stride, s.scatter, s.turned);
  Axis horizontal(s.stride, s.left, s.kw, s.Wo, blockIdx.z % s.stride, s.scatter, s.turned);
  if (vertical.size <= 0 || horizontal.size <= 0) return;  // an image of one row has no odd ones
  __shared__ Tile<ROWS, true> as[STAGES];
  __shared__ Tile<COLUMNS, DEEP> bs[STAGES];
  Sums<COLUMNS> sums;
  int chunks = (vertical.taps * horizontal.taps * s.C + K - 1) / K;
  bool a_fours = in_fours(x, s.C), b_fours = in_fours(w, DEEP ? s.C : s.O);
  auto add = [&](auto source) { sums.add_products(source, chunks, as, bs, [](auto&) {}); };
  if (a_fours && b_fours && !s.relu) add(Gather<COLUMNS, DEEP, true, true>(x, w, s, vertical, horizontal));
  else if (a_fours && b_fours && !DEEP) add(Gather<COLUMNS, DEEP, true, true, !DEEP>(x, w, s, vertical, horizontal));
  else if (a_fours) add(Gather<COLUMNS, DEEP, true, false>(x, w, s, vertical, horizontal));
  else add(Gather<COLUMNS, DEEP, false, false>(x, w, s, vertical, horizontal));
  sums.store(y, s.O, bias, rest, gate, [&](int row) {
    int p = blockIdx.x * ROWS + row, line = p / horizontal.size, n = line / vertical.size;
    int h = line % vertical.size * vertical.stride + vertical.parity;
    int v = p % horizontal.size * horizontal.stride + horizontal.parity;
    auto pixel = [&](int size) { return (((long long)n * (s.Ho / size) + h / size) * (s.Wo / size) + v / size) * s.O; };
    return n < s.N ? Place{pixel(1), pixel(s.small ? 2 : 1)} : NOWHERE;
  });
}

#define GATHER_TAKES \
  const real *x, const real *w, const real *bias, const real *rest, const real *gate, real *y, Shape s
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    gather_8(GATHER_TAKES) { gather<8, false>(x, w, bias, rest, gate, y, s); }
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    gather_8_swapped(GATHER_TAKES) { gather<8, true>(x, w, bias, rest, gate, y, s); }
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    gather_32(GATHER_TAKES) { gather<32, false>(x, w, bias, rest, gate, y, s); }
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    gather_32_swapped(GATHER_TAKES) { gather<32, true>(x, w, bias, rest, gate, y, s); }
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT_64)
    gather_64(GATHER_TAKES) { gather<64, false>(x, w, bias, rest, gate, y, s); }
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    gather_64_swapped(GATHER_TAKES) { gather<64, true>(x, w, bias, rest, gate, y, s); }
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    gather_128(GATHER_TAKES) { gather<WIDEST, false>(x, w, bias, rest, gate, y, s); }
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    gather_128_swapped(GATHER_TAKES) { gather<WIDEST, true>(x, w, bias, rest, gate, y, s); }

// ---- outer

// A pixel of all the images, counted through.
struct Pixel {
  int height, width, n, h, w;

  __device__ void advance(int pixels) {
    for (w += pixels; w >= width; w -= width)
      if (++h == height) h = 0, n++;
  }
};

// A's rows are the (i, j, c), and what they see of x from each of g's pixels; B is g. A block sums pixels p to end - 1 of
// its slot's, which has the images slot, slot + slots, ... (batch.slots).
template <int COLUMNS, bool A_FOURS, bool B_FOURS, bool RELU = false>
struct Outer {
  using TileA = Tile<ROWS, false>;
  using TileB = Tile<COLUMNS, false>;
  const real *x, *g;
  Shape s;
  static constexpr bool ALIKE = TileA::SIDE == TileB::SIDE;  // a thread's k is the same in both
  int p, end, slot;           // p: the pixel of the slot's that this thread copies of A
  Pixel at;                   // p again
  int offset[TileA::EACH];    // from what the first tap sees of channel 0 to what the rows of its Fours see
  unsigned needed[TileA::EACH];
  int to_a = kept(TileA::place(TileA::line(0), TileA::k())), to_b = kept(TileB::place(TileB::line(0), TileB::k()));

  __device__ Outer(const real* x, const real* g, const Shape& s, int first, int end)
      : x(x), g(g), s(s), p(first + TileA::k()), end(end), slot(blockIdx.z % s.slots),
        at{s.Ho, s.Wo, p / s.Wo / s.Ho, p / s.Wo % s.Ho, p % s.Wo} {
    for (int i = 0; i < TileA::EACH; i++) row(TileA::line(i), offset[i], needed[i]);
  }

  __device__ bool relu() const { return A_FOURS && B_FOURS ? RELU : s.relu; }

  __device__ void row(int line, int& offset, unsigned& needed) const {
    int m = blockIdx.x * ROWS + line, i = m / s.C / s.kw, j = m / s.C % s.kw;
    offset = (i * s.W + j) * s.C + m % s.C;
    needed = i < s.kh ? tap_bits(i, j) : OUTSIDE;
  }

  __device__ void fill(TileA& a, TileB& b) {
    int top = s.stride * at.h - s.top, left = s.stride * at.w - s.left;
    unsigned inside = p < end ? seen(top, 1, s.kh, s.H) | seen(left, 1, s.kw, s.W) << J : 0;
    const real* first = x + (long long)(slot + at.n * s.slots) * (s.H * s.W * s.C) + (top * s.W + left) * s.C;
#pragma unroll
    for (int i = 0; i < TileA::EACH; i++) {
      Four& to = a.own(to_a, i);
      if (A_FOURS) start_copy(&to, (const Four*)(first + offset[i]), !(needed[i] & ~inside));
      else
        for (int e = 0; e < 4; e++) {
          int offset;
          unsigned needed;
          row(TileA::line(i) + e, offset, needed);
          start_copy(&to.v[e], first + offset, !(needed & ~inside));
        }
    }
    if (TileB::copies()) {
      int k = TileB::k() - TileA::k(), o = blockIdx.y * COLUMNS + TileB::line(0);
      int pixels = s.Ho * s.Wo, n = ALIKE ? at.n : (p + k) / pixels;  // others' images lie between those of the slot
      const real* from = g + (p + k + (long long)(slot + n * (s.slots - 1)) * pixels) * s.O + o;
#pragma unroll
      for (int i = 0; i < TileB::EACH; i++) {
        Four& to = b.own(to_b, i);
        int further = TileB::line(i) - TileB::line(0);
        if (B_FOURS) start_copy(&to, (const Four*)(from + further), p + k < end && o + further < s.O);
        else
          for (int e = 0; e < 4; e++)
            start_copy(&to.v[e], from + further + e, p + k < end && o + further + e < s.O);
      }
    }
    at.advance(K), p += K;
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

// blockIdx: x for rows, y for columns of dw, z for the partial sums: partial (z, kh kw C + 1, O), rows of dw and then
// db, which the blocks of dw's first rows find on the way. The last sum may have no pixel.
template <int COLUMNS>
__device__ void outer(const real* x, const real* g, real* partial, const Shape& s) {
  int images = (s.N - 1 - int(blockIdx.z) % s.slots + s.slots) / s.slots, rows = s.kh * s.kw * s.C;
  int first = blockIdx.z / s.slots * s.each, count = max(0, min(s.each, images * s.Ho * s.Wo - first));
  int chunks = (count + K - 1) / K, end = first + count;
  __shared__ Tile<ROWS, false> as[STAGES];
  __shared__ Tile<COLUMNS, false> bs[STAGES];
  Sums<COLUMNS> sums;
  ColumnSums<COLUMNS> of_g;
  auto add = [&](auto source) {  // each with a loop of its own: that of most blocks has no more to do
    if (blockIdx.x == 0) sums.add_products(source, chunks, as, bs, [&](auto& b) { of_g.add(b); });
    else sums.add_products(source, chunks, as, bs, [](auto&) {});
  };
  bool a_fours = in_fours(x, s.C), b_fours = in_fours(g, s.O);
  if (a_fours && b_fours && s.relu) add(Outer<COLUMNS, true, true, true>(x, g, s, first, end));
  else if (a_fours && b_fours) add(Outer<COLUMNS, true, true>(x, g, s, first, end));
  else if (a_fours) add(Outer<COLUMNS, true, false>(x, g, s, first, end));
  else add(Outer<COLUMNS, false, false>(x, g, s, first, end));
  partial += (long long)blockIdx.z * (rows + 1) * s.O;
  sums.store(partial, s.O, nullptr, nullptr, nullptr, [&](int row) {
    int m = blockIdx.x * ROWS + row;
    return m < rows ? Place{(long long)m * s.O, 0} : NOWHERE;
  });
  if (blockIdx.x == 0) {
    int o = blockIdx.y * COLUMNS;
    of_g.store(partial + (long long)rows * s.O + o, s.O - o, as[0].value);
  }
}

#define OUTER_TAKES const real *x, const real *g, real *partial, Shape s
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) outer_8(OUTER_TAKES) { outer<8>(x, g, partial, s); }
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) outer_32(OUTER_TAKES) { outer<32>(x, g, partial, s); }
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT_64)
    outer_64(OUTER_TAKES) { outer<64>(x, g, partial, s); }
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    outer_128(OUTER_TAKES) { outer<WIDEST>(x, g, partial, s); }

// ---- sums over rows

// y[c] = the sum of x[r, c] over all rows: (rows, columns) -> (columns), in the order of batch.slots.
extern "C" __global__ void __launch_bounds__(1024) column_sums(const real* x, real* y, int rows, int columns) {
  int c = THREAD;
  real sum = 0;
  if (c < columns)
    for (int r = threadIdx.y; r < rows; r += blockDim.y) sum += x[(long long)r * columns + c];
  sum = join_rows<1024>(sum);
  if (c < columns && threadIdx.y == 0) y[c] = sum;
}

// y[o] = the sum of x (N, H, W O) over images and positions. A block sums over the images of a slot, blockIdx.y, and
// over their rows: partial (W, slots, O). The last block adds these with `lanes` of its rows of threads: y (O).
extern "C" __global__ void __launch_bounds__(1024) channel_sums(const real* x, real* partial, real* y,
                                                                unsigned* counter, int N, int H, int WO, int O,
                                                                int lanes) {
  int c = THREAD, slot = blockIdx.y, slots = gridDim.y, rows = (N - 1 - slot + slots) / slots * H;
  real sum = 0;
  if (c < WO)
    for (int r = threadIdx.y; r < rows; r += blockDim.y)
      sum += x[((long long)(slot + r / H * slots) * H + r % H) * WO + c];
  sum = join_rows<1024>(sum);
  if (c < WO && threadIdx.y == 0) partial[(c / O * slots + slot) * O + c % O] = sum;
  if (!last_block(counter, gridDim.x * gridDim.y)) return;
  for (int first = 0; first < O; first += blockDim.x) {
    int o = first + threadIdx.x;
    sum = 0;
    if (o < O && threadIdx.y < lanes)
      for (int r = threadIdx.y; r < WO / O * slots; r += lanes) sum += partial[r * O + o];
    sum = join_rows<1024>(sum);
    if (o < O && threadIdx.y == 0) y[o] = sum;
  }
}
