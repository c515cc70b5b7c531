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

// The sum of v over the block, for each of its threads; blockDim.x is a multiple of 32, and shared holds 32 reals.
__device__ inline real block_sum(real v, real* shared) {
  v = warp_sum(v);
  int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  __syncthreads();  // an earlier sum's values have been read
  if (lane == 0) shared[warp] = v;
  __syncthreads();
  return warp_sum(lane < warps ? shared[lane] : real(0));
}
