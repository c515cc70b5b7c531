// ReLU and tanh (activation.py). A thread computes EACH elements, a block's width apart, so that neighbouring threads
// read neighbouring elements and each thread has EACH loads under way at a time.

#define EACH 4
#define EACH_ELEMENT(i, size)                                                                          \
  for (int i = blockIdx.x * blockDim.x * EACH + threadIdx.x, k = 0; k < EACH; k++, i += blockDim.x) \
    if (i < size)

// y = max(x, 0); a NaN stays one.
extern "C" __global__ void relu(const real* __restrict__ x, real* __restrict__ y, int size) {
  EACH_ELEMENT(i, size) y[i] = x[i] < 0 ? real(0) : x[i];
}

// dx = g where y > 0, else 0; plus what is there so far, if anything.
extern "C" __global__ void relu_backward(const real* __restrict__ y, const real* __restrict__ g,
                                         const real* __restrict__ so_far, real* __restrict__ dx, int size) {
  EACH_ELEMENT(i, size) dx[i] = (so_far ? so_far[i] : real(0)) + (y[i] > 0 ? g[i] : real(0));
}

// y = tanh(x).
extern "C" __global__ void tanh_forward(const real* __restrict__ x, real* __restrict__ y, int size) {
  EACH_ELEMENT(i, size) y[i] = tanh(x[i]);
}

// dx = g (1 - y^2).
extern "C" __global__ void tanh_backward(const real* __restrict__ y, const real* __restrict__ g, real* __restrict__ dx,
                                         int size) {
  EACH_ELEMENT(i, size) dx[i] = g[i] * (1 - y[i] * y[i]);
}
