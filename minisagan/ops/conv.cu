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
// 2. The tiled product: a block computes a tile of ROWS x COLUMNS from pieces of A and B in shared memory (product.cu).
// 3. Few addresses: a thread always copies the same place of a tile. What it sees of x is its pixel's address plus its
//    term's offset, and whether that lies inside of the image is one test of bits that were made before the loop.
// 4. Tensor cores: where float32 may be rounded to TF32, they multiply (product.cu, too).
//
// What was chosen for speed has not been measured: there was no GPU. It is counted in the machine code
// (tests/machine_code.py): instructions of the loop for each product on the tensor cores.

#include "product.cu"

struct Shape {  // comes by value, as part of the launch
  int N, H, W, C, Ho, Wo, O, kh, kw, stride, top, left;  // (N, H, W, C) is x, (N, Ho, Wo, O) is y or g
  int relu;             // whether max(x, 0) is read for x
  int scatter, turned;  // in gather: which of the two; whether w is turned by 180 degrees
  int small;            // in gather: whether the rest has half y's height and width
  int slots, each;      // in outer: partial sum z is of slot z mod slots, and of `each` pixels of its images
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
