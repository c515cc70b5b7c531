// The primitives of conv.py on the GPU. From the equation to the kernel it is three steps:
//
// 1. The naive sum: a thread for each output adds up what its taps see. That is a product of matrices, where A, what
//    the taps see of x (zero outside of the image), is looked up and never written to memory ("implicit GEMM"):
//
//      gather    y[p, o]  = bias[o] + sum_k  A[p, k] B[k, o]   p: output pixels     k: (tap, channel)   B: the weights
//      outer     dw[m, o] =           sum_p  A[m, p] B[p, o]   m: (tap, channel)    p: output pixels    B: the cotangent
//
//    scatter is s x s gathers: outputs with the same h mod s and w mod s use only every s-th tap (struct Axis).
// 2. The tiled product: a block computes a tile of ROWS x COLUMNS. It copies K terms of A's rows and B's columns to
//    shared memory (Tile), where all its threads read them, and copies the next K terms while it multiplies (Sums).
// 3. Tensor cores: where float32 may be rounded to TF32, a warp multiplies (16, 8) by (8, 8) pieces at once (mma).
//
// What was chosen for speed (shapes of tiles, order of terms, copies ahead) has not been measured: there was no GPU.

struct Shape {  // comes by value, as part of the launch
  int N, H, W, C, Ho, Wo, O, kh, kw, stride, top, left;  // (N, H, W, C) is x, (N, Ho, Wo, O) is y or g
  int scatter, turned;  // in gather: which of the two; whether w is turned by 180 degrees
  int each;             // in outer: how many of g's pixels are in a partial sum
};

constexpr int K = 64 / sizeof(real), ROWS = 512 / sizeof(real), THREADS = 2 * ROWS;

#if TF32 && (defined(CUDA_ON_CPU) || __CUDA_ARCH__ >= 800)
#define TENSOR_CORES
constexpr int RESIDENT = 2;  // blocks on a processor: 128 registers for each thread
#else
constexpr int RESIDENT = 1;
#endif

struct alignas(16) Four { real v[4]; };  // what a thread copies at once, from neighbouring addresses

// Whether rows of this length, from p on, consist of such fours.
__device__ inline bool in_fours(const real* p, int length) { return length % 4 == 0 && (size_t)p % 16 == 0; }

// *to = *from, or zeros from a null pointer. It is done after finish_copies(): a GPU of sm_80 copies while it computes.
template <class T>
__device__ void start_copy(T* to, const T* from) {
#if __CUDA_ARCH__ >= 800
  constexpr int bytes = sizeof(T) < 16 ? sizeof(T) : 16;
  for (int i = 0; i < sizeof(T); i += bytes)
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"((unsigned)__cvta_generic_to_shared(to) + i),
                 "l"((const char*)from + i), "n"(bytes), "r"(from ? bytes : 0)
                 : "memory");
#else
  *to = from ? *from : T{};
#endif
}
__device__ inline void finish_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

#ifdef TENSOR_CORES
// v rounded to TF32's 10 bits of mantissa.
__device__ inline unsigned to_tf32(float v) {
#ifdef CUDA_ON_CPU
  return emulated::to_tf32(v);
#else
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
  return bits;
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
// else they are neighbouring lines. The pitch puts what a warp reads together into different banks.
template <int LINES, bool DEEP>
struct Tile {
  static constexpr int COUNT = LINES * K / 4, EACH = (COUNT + THREADS - 1) / THREADS;  // Fours: in all, of a thread
  Four value[DEEP ? LINES : K][DEEP ? K / 4 + 1 : LINES / 4 + 2 * (LINES > 8)];

  // Where the first element of this thread's i-th Four is.
  __device__ static int line(int i) { return DEEP ? four(i) / (K / 4) : four(i) % (LINES / 4) * 4; }
  __device__ static int k(int i) { return DEEP ? four(i) % (K / 4) * 4 : four(i) / (LINES / 4); }
  __device__ static int four(int i) { return threadIdx.x + i * THREADS; }
  __device__ real at(int line, int k) const {
    return DEEP ? value[line][k / 4].v[k % 4] : value[k][line / 4].v[line % 4];
  }

  // Starts to copy this thread's Fours: from(i, e) is where its i-th has its element e, a null pointer for a zero.
  template <class From>
  __device__ void fill(bool neighbours, From from) {
#pragma unroll
    for (int i = 0; i < EACH; i++)
      if (COUNT % THREADS == 0 || threadIdx.x + i * THREADS < COUNT) {
        Four& to = DEEP ? value[line(i)][k(i) / 4] : value[k(i)][line(i) / 4];
        if (neighbours) start_copy(&to, (const Four*)from(i, 0));
        else
          for (int e = 0; e < 4; e++) start_copy(&to.v[e], from(i, e));
      }
  }
};

// A thread's part of the block's tile of the product. Each warp has a rectangle of (16, 8) pieces, laid out as in mma.
template <int COLUMNS>
struct Sums {
  static constexpr int ACROSS = COLUMNS > 32 ? COLUMNS / 32 : 1, DOWN = THREADS / WARP / ACROSS;  // warps
  static constexpr int HIGH = ROWS / DOWN / 16, WIDE = COLUMNS / ACROSS / 8;                      // pieces of a warp
  real value[HIGH][WIDE][4] = {};

  __device__ static int row(int i, int e) {
    return (threadIdx.x / WARP / ACROSS * HIGH + i) * 16 + threadIdx.x % WARP / 4 + 8 * (e / 2);
  }
  __device__ static int column(int j, int e) {
    return (threadIdx.x / WARP % ACROSS * WIDE + j) * 8 + threadIdx.x % 4 * 2 + e % 2;
  }

  template <class A, class B>
  __device__ void add_product(const A& a, const B& b) {
#ifdef TENSOR_CORES
    int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int k = 0; k < K; k += 8) {
      unsigned as[4], bs[WIDE][2];
#pragma unroll
      for (int j = 0; j < 2 * WIDE; j++)
        bs[j / 2][j % 2] = to_tf32(b.at(column(j / 2, 0) - 2 * t + g, k + t + 4 * (j % 2)));
#pragma unroll
      for (int i = 0; i < HIGH; i++) {
#pragma unroll
        for (int e = 0; e < 4; e++) as[e] = to_tf32(a.at(row(i, 0) + 8 * (e % 2), k + t + 4 * (e / 2)));
#pragma unroll
        for (int j = 0; j < WIDE; j++) mma(value[i][j], as, bs[j]);
      }
    }
#else
#pragma unroll 4
    for (int k = 0; k < K; k++) {
      real as[HIGH][2], bs[WIDE][2];
#pragma unroll
      for (int i = 0; i < 2 * HIGH; i++) as[i / 2][i % 2] = a.at(row(i / 2, i % 2 * 2), k);
#pragma unroll
      for (int j = 0; j < 2 * WIDE; j++) bs[j / 2][j % 2] = b.at(column(j / 2, j % 2), k);
#pragma unroll
      for (int i = 0; i < HIGH; i++)
#pragma unroll
        for (int j = 0; j < 4 * WIDE; j++) value[i][j / 4][j % 4] += as[i][j % 4 / 2] * bs[j / 4][j % 2];
    }
#endif
  }

  // All `chunks` of K terms. While one is multiplied the next one is copied: each matrix has two tiles, in turn. The
  // source tells where a(i, e) and b(i, e) are, element e of this thread's i-th Four; next() goes on by K terms.
  template <class Source>
  __device__ void add_products(Source& source, int chunks) {
    __shared__ typename Source::TileA as[2];
    __shared__ typename Source::TileB bs[2];
    for (int chunk = 0; chunk <= chunks; chunk++) {
      if (chunk < chunks) {
        as[chunk % 2].fill(source.a_fours, [&](int i, int e) { return source.a(i, e); });
        bs[chunk % 2].fill(source.b_fours, [&](int i, int e) { return source.b(i, e); });
        source.next();
      }
      if (chunk) add_product(as[(chunk - 1) % 2], bs[(chunk - 1) % 2]);
      finish_copies();
      __syncthreads();
    }
  }

  // Row i of this thread's 2 HIGH, plus the bias if there is one: y is the row of the whole product, of O columns.
  __device__ void store_row(int i, real* y, int O, const real* bias) const {
    for (int j = 0; j < 2 * WIDE; j++) {
      int o = blockIdx.y * COLUMNS + column(j / 2, j % 2);
      if (o < O) y[o] = value[i / 2][j / 2][i % 2 * 2 + j % 2] + (bias ? bias[o] : real(0));
    }
  }
};

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

  __device__ Term operator+(int terms) const {
    Term to = *this;
    for (to.c += terms; to.c >= depth; to.c -= depth)
      if (++to.j == width) {
        to.j = 0;
        if (++to.i == height) to.i = 0, to.group += depth;
      }
    return to;
  }
};

// A is what the taps of ROWS output pixels see of x; B is w, (kh, kw, C, O) or, for a DEEP tile, (kh, kw, O, C).
template <int COLUMNS, bool DEEP>
struct Gather {
  using TileA = Tile<ROWS, true>;
  using TileB = Tile<COLUMNS, DEEP>;
  const real *x, *w;
  Shape s;
  Axis vertical, horizontal;
  Term term;
  bool a_fours, b_fours;
  int image[TileA::EACH], top[TileA::EACH], left[TileA::EACH];  // the pixel that the first tap sees

  __device__ Gather(const real* x, const real* w, Shape s, Axis vertical, Axis horizontal)
      : x(x), w(w), s(s), vertical(vertical), horizontal(horizontal),
        term{s.C % K ? s.C : K, vertical.taps, horizontal.taps},
        a_fours(in_fours(x, s.C)), b_fours(in_fours(w, DEEP ? s.C : s.O)) {
    for (int i = 0; i < TileA::EACH; i++) {
      int p = blockIdx.x * ROWS + TileA::line(i), row = p / horizontal.size;
      image[i] = row / vertical.size;
      top[i] = row % vertical.size * vertical.step + vertical.first;
      left[i] = p % horizontal.size * horizontal.step + horizontal.first;
    }
  }

  __device__ const real* a(int i, int e) const {
    Term at = term + TileA::k(i) + e;
    int row = top[i] + vertical.way * at.i, column = left[i] + horizontal.way * at.j;
    bool inside = image[i] < s.N && 0 <= row && row < s.H && 0 <= column && column < s.W && at.group < s.C;
    int within = (row * s.W + column) * s.C + at.group + at.c;
    return inside ? x + (long long)image[i] * (s.H * s.W * s.C) + within : nullptr;
  }

  __device__ const real* b(int i, int e) const {
    Term at = term + TileB::k(i) + (DEEP ? e : 0);
    int o = blockIdx.y * COLUMNS + TileB::line(i) + (DEEP ? 0 : e), c = at.group + at.c;
    int row = vertical.tap + vertical.tap_step * at.i, column = horizontal.tap + horizontal.tap_step * at.j;
    bool inside = o < s.O && at.group < s.C;
    return inside ? w + (long long)(row * s.kw + column) * s.C * s.O + (DEEP ? o * s.C + c : c * s.O + o) : nullptr;
  }

  __device__ void next() { term = term + K; }
};

// blockIdx: x for pixels, y for channels of the output, z for the remainders of its pixels mod s in scatter.
template <int COLUMNS, bool DEEP>
__device__ void gather(const real* x, const real* w, const real* bias, real* y, const Shape& s) {
  Axis vertical(s.stride, s.top, s.kh, s.Ho, blockIdx.z / s.stride, s.scatter, s.turned);
  Axis horizontal(s.stride, s.left, s.kw, s.Wo, blockIdx.z % s.stride, s.scatter, s.turned);
  if (vertical.size <= 0 || horizontal.size <= 0) return;  // an image of one row has no odd ones
  Gather<COLUMNS, DEEP> source(x, w, s, vertical, horizontal);
  Sums<COLUMNS> sums;
  sums.add_products(source, (vertical.taps * horizontal.taps * s.C + K - 1) / K);
  for (int i = 0; i < 2 * sums.HIGH; i++) {
    int p = blockIdx.x * ROWS + sums.row(i / 2, i % 2 * 2), row = p / horizontal.size, n = row / vertical.size;
    int h = row % vertical.size * vertical.stride + vertical.parity;
    int v = p % horizontal.size * horizontal.stride + horizontal.parity;
    if (n < s.N) sums.store_row(i, y + (((long long)n * s.Ho + h) * s.Wo + v) * s.O, s.O, bias);
  }
}

#define GATHER_TAKES const real *x, const real *w, const real *bias, real *y, Shape s
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    gather_8(GATHER_TAKES) { gather<8, false>(x, w, bias, y, s); }
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    gather_32(GATHER_TAKES) { gather<32, false>(x, w, bias, y, s); }
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    gather_64(GATHER_TAKES) { gather<64, false>(x, w, bias, y, s); }
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    gather_128(GATHER_TAKES) { gather<128, false>(x, w, bias, y, s); }
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    gather_8_swapped(GATHER_TAKES) { gather<8, true>(x, w, bias, y, s); }
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    gather_32_swapped(GATHER_TAKES) { gather<32, true>(x, w, bias, y, s); }
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    gather_64_swapped(GATHER_TAKES) { gather<64, true>(x, w, bias, y, s); }
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    gather_128_swapped(GATHER_TAKES) { gather<128, true>(x, w, bias, y, s); }

// ---- outer

// A pixel of all the images, counted through.
struct Pixel {
  int height, width, n, h, w;

  __device__ Pixel operator+(int pixels) const {
    Pixel to = *this;
    for (to.w += pixels; to.w >= width; to.w -= width)
      if (++to.h == height) to.h = 0, to.n++;
    return to;
  }
};

// A's rows are the (i, j, c), and what they see of x from each of g's pixels; B is g. A block sums pixels p to end - 1.
template <int COLUMNS>
struct Outer {
  using TileA = Tile<ROWS, false>;
  using TileB = Tile<COLUMNS, false>;
  const real *x, *g;
  Shape s;
  int p, end;
  Pixel at;
  Term row;  // the first of this thread's four; beyond the last anything, for it is not stored
  bool a_fours, b_fours;

  __device__ Outer(const real* x, const real* g, Shape s, int p, int end)
      : x(x), g(g), s(s), p(p), end(end), at{s.Ho, s.Wo, p / s.Wo / s.Ho, p / s.Wo % s.Ho, p % s.Wo},
        a_fours(in_fours(x, s.C)), b_fours(in_fours(g, s.O)) {
    int m = blockIdx.x * ROWS + TileA::line(0);
    row = {s.C, s.kh, s.kw, 0, m / s.C / s.kw, m / s.C % s.kw, m % s.C};
  }

  __device__ const real* a(int i, int e) const {
    int k = TileA::k(i);
    Pixel from = at + k;
    Term to = row + e;
    int h = s.stride * from.h + to.i - s.top, w = s.stride * from.w + to.j - s.left;
    bool inside = 0 <= h && h < s.H && 0 <= w && w < s.W && p + k < end;
    return inside ? x + (long long)from.n * (s.H * s.W * s.C) + (h * s.W + w) * s.C + to.c : nullptr;
  }

  __device__ const real* b(int i, int e) const {
    int k = TileB::k(i), o = blockIdx.y * COLUMNS + TileB::line(i) + e;
    return o < s.O && p + k < end ? g + (long long)(p + k) * s.O + o : nullptr;
  }

  __device__ void next() { at = at + K, p += K; }
};

// blockIdx: x for rows, y for columns of dw, z for the partial sums: partial (z, kh kw C, O).
template <int COLUMNS>
__device__ void outer(const real* x, const real* g, real* partial, const Shape& s) {
  int first = blockIdx.z * s.each, count = min(s.each, s.N * s.Ho * s.Wo - first), rows = s.kh * s.kw * s.C;
  Outer<COLUMNS> source(x, g, s, first, first + count);
  Sums<COLUMNS> sums;
  sums.add_products(source, (count + K - 1) / K);
  for (int i = 0; i < 2 * sums.HIGH; i++) {
    int m = blockIdx.x * ROWS + sums.row(i / 2, i % 2 * 2);
    if (m < rows) sums.store_row(i, partial + ((long long)blockIdx.z * rows + m) * s.O, s.O, nullptr);
  }
}

#define OUTER_TAKES const real *x, const real *g, real *partial, Shape s
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) outer_8(OUTER_TAKES) { outer<8>(x, g, partial, s); }
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) outer_32(OUTER_TAKES) { outer<32>(x, g, partial, s); }
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) outer_64(OUTER_TAKES) { outer<64>(x, g, partial, s); }
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) outer_128(OUTER_TAKES) { outer<128>(x, g, partial, s); }

// ---- sums over rows, and kernels smeared by a 2x2 box

// y[b, c] = the sum of x[r, c] over the rows r of slice b, `each` of them: (rows, columns) -> (slices, columns).
extern "C" __global__ void __launch_bounds__(1024)
    column_sums(const real* x, real* y, int rows, int columns, int each) {
  __shared__ real sums[32][33];
  int c = blockIdx.x * 32 + threadIdx.x, end = min(rows, int(blockIdx.y + 1) * each);
  real sum = 0;
  if (c < columns)
    for (int r = blockIdx.y * each + threadIdx.y; r < end; r += 32) sum += x[(long long)r * columns + c];
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  sum = warp_sum(sums[threadIdx.x][threadIdx.y]);  // now a warp has a column
  c = blockIdx.x * 32 + threadIdx.y;
  if (threadIdx.x == 0 && c < columns) y[(long long)blockIdx.y * columns + c] = sum;
}

// u[i] = w[i] + w[i - 1] on each axis: w (3, 3, CO) -> u (4, 4, CO).
extern "C" __global__ void smear(const real* w, real* u, int CO) {
  int tap = THREAD / CO, i = tap / 4, j = tap % 4;
  if (tap >= 16) return;
  real sum = 0;
  for (int a = max(i - 1, 0); a <= min(i, 2); a++)
    for (int b = max(j - 1, 0); b <= min(j, 2); b++) sum += w[(a * 3 + b) * CO + THREAD % CO];
  u[THREAD] = sum;
}

// w[i] = u[i] + u[i + 1] on each axis: u (4, 4, C, O), or in memory turned or as (4, 4, O, C) -> w (3, 3, C, O).
extern "C" __global__ void unsmear(const real* u, real* w, int C, int O, int turned, int swapped) {
  int CO = C * O, tap = THREAD / CO, c = THREAD % CO / O, o = THREAD % O;
  if (tap >= 9) return;
  real sum = 0;
  for (int k = 0; k < 4; k++) {
    int at = (tap / 3 + k / 2) * 4 + tap % 3 + k % 2;
    sum += u[(turned ? 15 - at : at) * CO + (swapped ? o * C + c : c * O + o)];
  }
  w[THREAD] = sum;
}
