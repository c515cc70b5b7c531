// What all kernels share: this text comes before each .cu file. One text for NVRTC, nvcc and the tests' emulation.
// `real` is the float type of the arrays. Sums are taken in a fixed order: no floating-point atomics anywhere.

typedef REAL real;

#define THREAD (blockIdx.x * blockDim.x + threadIdx.x)
#define STRIDE int(gridDim.x * blockDim.x)  // from a thread's element to its next one, where it has several
#define WARP 32
#define ALL_LANES 0xffffffffu

__device__ inline real joined(real a, real b) { return a + b; }

// What the block's threads of one x found, joined in halves, row y with y + rows / 2 and so on, for the thread of row
// 0. blockDim.y is a power of two; a block has at most so many threads.
template <int THREADS, typename Found>
__device__ inline Found join_rows(Found found) {
  __shared__ Found shared[THREADS];
  int t = threadIdx.y * blockDim.x + threadIdx.x;
  __syncthreads();  // what was there has been read
  shared[t] = found;
  for (int rows = blockDim.y / 2; rows; rows /= 2) {
    __syncthreads();
    if (threadIdx.y < rows) shared[t] = joined(shared[t], shared[t + rows * blockDim.x]);
  }
  return shared[t];
}

// The sum of v over the warp, for each of its lanes.
__device__ inline real warp_sum(real v) {
  for (int lanes = WARP / 2; lanes; lanes /= 2) v += __shfl_xor_sync(ALL_LANES, v, lanes);
  return v;
}

// Whether this block is the last of so many to come here, for each of its threads. That one may read what the others
// wrote before. The counter is one of cuda.py's: 0 before the first, and after the last.
__device__ inline bool last_block(unsigned* counter, unsigned blocks) {
  __shared__ bool last;
  __syncthreads();  // all threads have written
  if (threadIdx.x + threadIdx.y + threadIdx.z == 0) {
    __threadfence();  // what this block wrote is there before it counts
    last = atomicInc(counter, blocks - 1) == blocks - 1;
    __threadfence();  // what this block reads is what is there after it counted
  }
  __syncthreads();
  return last;
}

// The sum of v over the block, for each of its threads; blockDim.x is a multiple of 32, and shared holds 32 reals.
__device__ inline real block_sum(real v, real* shared) {
  v = warp_sum(v);
  int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  __syncthreads();  // an earlier sum's values have been read
  if (lane == 0) shared[warp] = v;
  __syncthreads();
  return warp_sum(lane < warps ? shared[lane] : real(0));
}
