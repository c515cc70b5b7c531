// What all kernels share: this text comes before each .cu file. One text for NVRTC, nvcc and the tests' emulation.
// `real` is the float type of the arrays. Sums are taken in a fixed order: no floating-point atomics anywhere.

typedef REAL real;

#define THREAD (blockIdx.x * blockDim.x + threadIdx.x)
#define WARP 32
#define ALL_LANES 0xffffffffu

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
