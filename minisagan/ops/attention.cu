// Softmax (attention.py). A warp takes a line of K elements, `stride` apart in memory: its lane l has the elements l,
// l + 32, ... Along the last axis (stride 1) neighbouring lanes touch neighbouring elements. A line is read from memory
// once, and again from the cache.

// The first element of this warp's line: x is (lines / stride, K, stride).
#define LINE (THREAD / WARP)
#define FIRST (size_t(LINE / stride) * K * stride + LINE % stride)
#define EACH_OF_LINE(i) for (int i = threadIdx.x % WARP; i < K; i += WARP)

__device__ inline real warp_max(real v) {
  for (int lanes = WARP / 2; lanes; lanes /= 2) {
    real other = __shfl_xor_sync(ALL_LANES, v, lanes);
    v = v < other ? other : v;
  }
  return v;
}

// y_i = exp(x_i - max x) / sum_k exp(x_k - max x), y may be x.
extern "C" __global__ void softmax(const real* x, real* y, int lines, int K, int stride) {
  if (LINE >= lines) return;  // a whole warp
  x += FIRST, y += FIRST;
  real largest = x[0], sum = 0;
  EACH_OF_LINE(i) largest = max(largest, x[size_t(i) * stride]);
  largest = warp_max(largest);
  __syncwarp();  // all lanes have read x[0]: lane 0 may write over it
  EACH_OF_LINE(i) sum += exp(x[size_t(i) * stride] - largest);
  sum = warp_sum(sum);
  EACH_OF_LINE(i) y[size_t(i) * stride] = exp(x[size_t(i) * stride] - largest) / sum;
}

// dx = y (g - sum_k g_k y_k), dx may be g.
extern "C" __global__ void softmax_backward(const real* __restrict__ y, const real* g, real* dx, int lines, int K,
                                            int stride) {
  if (LINE >= lines) return;
  y += FIRST, g += FIRST, dx += FIRST;
  real sum = 0;
  EACH_OF_LINE(i) sum += g[size_t(i) * stride] * y[size_t(i) * stride];
  sum = warp_sum(sum);
  EACH_OF_LINE(i) dx[size_t(i) * stride] = y[size_t(i) * stride] * (g[size_t(i) * stride] - sum);
}
