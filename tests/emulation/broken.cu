// Kernels with the faults that the emulation has to report, where it says BUG.

extern "C" __global__ void missing_barrier(const float* x, float* y) {
  __shared__ float s[64];
  s[threadIdx.x] = x[threadIdx.x];               // BUG
  y[threadIdx.x] = s[(threadIdx.x + 37) % 64];   // BUG
}

template <int N>
struct Tile {
  __device__ static void turn(const float* x, float* y) {
    __shared__ float s[N];
    s[threadIdx.x] = x[threadIdx.x];             // BUG
    y[threadIdx.x] = s[N - 1 - threadIdx.x];     // BUG
  }
};

extern "C" __global__ void missing_barrier_in_a_template(const float* x, float* y) {
  Tile<64>::turn(x, y);
}

extern "C" __global__ void missing_second_barrier(const float* x, float* y, int n) {
  __shared__ float s[64];
  float sum = 0;
  for (int i = 0; i < n; i += 64) {
    s[threadIdx.x] = x[i + threadIdx.x];         // BUG: others may still be reading
    __syncthreads();
    for (int j = 0; j < 64; j++) sum += s[j];    // BUG
  }
  y[threadIdx.x] = sum;
}

extern "C" __global__ void missing_syncwarp(float* y) {
  __shared__ float s[32];
  s[threadIdx.x] = threadIdx.x;                  // BUG
  y[threadIdx.x] = s[threadIdx.x ^ 1];           // BUG: that lanes run in step is not promised
}

extern "C" __global__ void shuffle_is_no_fence(float* y) {
  __shared__ float s[32];
  s[threadIdx.x] = threadIdx.x;                  // BUG
  float v = __shfl_sync(0xffffffffu, 1.0f, 0);
  y[threadIdx.x] = v * s[threadIdx.x ^ 1];       // BUG
}

extern "C" __global__ void missing_dynamic_barrier(float* y) {
  extern __shared__ float tile[];
  tile[threadIdx.x] = threadIdx.x;               // BUG
  y[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];  // BUG
}

extern "C" __global__ void divergent_barrier(float* y) {
  if (threadIdx.x < 16) __syncthreads();         // BUG
  else __syncthreads();                          // BUG
  y[threadIdx.x] = 1;
}

extern "C" __global__ void early_return(float* y, int n) {
  if (threadIdx.x >= n) return;
  __syncthreads();                               // BUG
  y[threadIdx.x] = 1;
}

extern "C" __global__ void write_past_end(float* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i <= n) y[i] = 1;                          // BUG
}

extern "C" __global__ void read_past_end(const float* x, float* y, int n) {
  int i = threadIdx.x;
  if (i < n) y[i] = x[i + 1];                    // BUG
}

extern "C" __global__ void read_before_start(const float* x, float* y, int n) {
  int i = threadIdx.x;
  if (i < n) y[i] = x[i - 1];                    // BUG
}

extern "C" __global__ void past_dynamic_shared(float* y) {
  extern __shared__ float tile[];
  tile[threadIdx.x + 1] = 1;                     // BUG
  y[threadIdx.x] = 1;
}

extern "C" __global__ void past_a_row(float* y) {
  __shared__ float tile[4][8];
  tile[threadIdx.x / 8][threadIdx.x % 8 + 1] = 1;  // BUG: a row's end is another's start
  y[threadIdx.x] = 1;
}

extern "C" __global__ void lost_update(float* y) {
  y[0] += 1;                                     // BUG
}

extern "C" __global__ void block_order(float* y) {
  int b = blockIdx.x;
  if (threadIdx.x == 0) y[b] = 1 + (b ? y[b - 1] : 0);  // BUG
}

extern "C" __global__ void lanes_not_there(float* y) {
  float v = threadIdx.x;
  if (threadIdx.x < 16) v += __shfl_xor_sync(0xffffffffu, v, 1);  // BUG
  __syncthreads();
  y[threadIdx.x] = v;
}

extern "C" __global__ void lane_not_in_mask(float* y) {
  y[threadIdx.x] = __shfl_sync(0x0000ffffu, 1.0f, 0);  // BUG
}

extern "C" __global__ void two_shuffles(float* y) {
  float v = threadIdx.x;
  if (threadIdx.x % 2) v = __shfl_sync(0xffffffffu, v, 0);  // BUG
  else v = __shfl_sync(0xffffffffu, v, 1);                  // BUG
  y[threadIdx.x] = v;
}

extern "C" __global__ void misaligned(const float* x, float* y) {
  const float4* four = reinterpret_cast<const float4*>(x + 1);
  y[threadIdx.x] = four[threadIdx.x].x;          // BUG
}

extern "C" __global__ void overflow(float* y, int n) {
  y[threadIdx.x] = n * n;                        // BUG
}

extern "C" __global__ void division_by_zero(float* y, int n) {
  y[threadIdx.x] = 7 / n;                        // BUG
}

extern "C" __global__ void uninitialised_shared(float* y) {
  __shared__ float s[32];
  if (threadIdx.x < 31) s[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];               // BUG: s[31] was never written
}

extern "C" __global__ void lane_beyond_the_block(float* y) {
  y[threadIdx.x] = __shfl_down_sync(0xffffffffu, 1.0f, 1);  // the last lane of half a warp reads from nobody: NaN
}

extern "C" __global__ void copy_without_barrier(const float* x, float* y) {
  __shared__ float s[64];
  emulated::start_copy(&s[threadIdx.x], &x[threadIdx.x], true);
  emulated::end_group();
  emulated::wait_for_all_but(0);                 // BUG: it waits for this thread's own copies
  y[threadIdx.x] = s[63 - threadIdx.x];          // BUG
}

extern "C" __global__ void copy_over_what_is_read(const float* x, float* y) {
  __shared__ float s[64];
  s[threadIdx.x] = 0;
  __syncthreads();
  float v = s[63 - threadIdx.x];                 // BUG: others may have begun to copy
  emulated::start_copy(&s[threadIdx.x], &x[threadIdx.x], true);  // BUG
  y[threadIdx.x] = v;
}

// Each thread copies to five places in groups of one or two, and waits for all but the last `GROUPS` groups.
template <int GROUPS>
__device__ void copy_groups(const float* x, float* y) {
  __shared__ float s[5][32];
  for (int i = 0; i < 5; i++) {
    emulated::start_copy(&s[i][threadIdx.x], &x[i * 32 + threadIdx.x], i != 1);
    if (i % 2) emulated::end_group();
  }
  emulated::wait_for_all_but(GROUPS);
  for (int i = 0; i < 5; i++) y[i * 32 + threadIdx.x] = s[i][threadIdx.x];
}
extern "C" __global__ void wait_for_all_but_0(const float* x, float* y) { copy_groups<0>(x, y); }
extern "C" __global__ void wait_for_all_but_1(const float* x, float* y) { copy_groups<1>(x, y); }
extern "C" __global__ void wait_for_all_but_2(const float* x, float* y) { copy_groups<2>(x, y); }

// And kernels without a fault, in what the faulty ones do wrong.

extern "C" __global__ void load_matrices(const unsigned* x, unsigned* y) {  // four (8, 4), one behind the other
  unsigned d[4];
  emulated::ldmatrix(d, x + 4 * threadIdx.x);
  for (int i = 0; i < 4; i++) y[i * 32 + threadIdx.x] = d[i];
}

extern "C" __global__ void half(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x] * 0.5f; }

extern "C" __global__ void count(int* y) { atomicAdd(y, 1); }

extern "C" __global__ void swap_neighbours(const float* x, float* y) {
  __shared__ float s[64];
  s[threadIdx.x] = x[threadIdx.x];
  __syncwarp();
  float v = s[threadIdx.x ^ 1];
  __syncthreads();
  s[63 - threadIdx.x] = v;
  __syncthreads();
  y[threadIdx.x] = s[63 - threadIdx.x];
}

extern "C" __global__ void shuffles(int* y) {
  int i = threadIdx.x, odd = i % 2;
  y[i] = __shfl_sync(0xffffffffu, i, 5);
  y[i + 32] = __shfl_up_sync(0xffffffffu, i, 3);
  y[i + 64] = __shfl_down_sync(0xffffffffu, i, 3, 8);
  y[i + 96] = __shfl_xor_sync(0xffffffffu, i, 16);
  y[i + 128] = __ballot_sync(0xffffffffu, i < 3);
  y[i + 160] = __any_sync(0xffffffffu, i == 9) + 2 * __all_sync(0xffffffffu, i < 32) + 4 * __all_sync(0xffffffffu, i);
  if (odd) y[i + 192] = __shfl_sync(0xaaaaaaaau, i, 31);
  else y[i + 192] = __shfl_sync(0x55555555u, i, 30);
}

extern "C" __global__ void grid(int* y) {
  unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  y[block * blockDim.x * blockDim.y * blockDim.z + thread] = 10000 * blockIdx.z + 1000 * blockIdx.y + 100 * blockIdx.x +
                                                             threadIdx.z * 30 + threadIdx.y * 10 + threadIdx.x;
}

extern "C" __global__ void mma(const float* a, const float* b, float* d) {  // (16, 8) (8, 8) -> (16, 8)
  int g = threadIdx.x / 4, t = threadIdx.x % 4;
  unsigned A[4], B[2];
  float D[4] = {};
  for (int i = 0; i < 4; i++) A[i] = emulated::to_tf32(a[(g + 8 * (i % 2)) * 8 + t + 4 * (i / 2)]);
  for (int i = 0; i < 2; i++) B[i] = emulated::to_tf32(b[(t + 4 * i) * 8 + g]);
  emulated::mma_tf32(D, A, B);
  for (int i = 0; i < 4; i++) d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = D[i];
}

struct Pair {
  const float *x, *y;
  int n;
};

extern "C" __global__ void sum_of_two(Pair pair, float* z) {
  for (int i = 0; i < pair.n; i++) z[i] = pair.x[i] + pair.y[i];
}

extern "C" __global__ void types(bool a, unsigned char b, const long long* c, double d, float** e, float4* f) {}
