// The hinge losses (hinge.py). Each loss, and each mean of scores, is summed by one block of one column of threads, in
// the order of batch.slots.

// 1 for the n real ones, -1 for the n fakes behind them.
__device__ inline real sign(int i, int n) { return i < n ? 1 : -1; }

// Whether the margin is above 0; a NaN counts, so that the loss becomes one.
__device__ inline bool counts(real margin) { return !(margin <= 0); }

// L_D = sum_i max(1 - sign_i x_i, 0) / n over the 2n scores.
extern "C" __global__ void discriminator(const real* __restrict__ x, real* __restrict__ loss, int n) {
  real sum = 0;
  for (int i = threadIdx.y; i < 2 * n; i += blockDim.y) {
    real margin = 1 - sign(i, n) * x[i];
    sum += counts(margin) ? margin : real(0);
  }
  sum = join_rows<1024>(sum);
  if (threadIdx.y == 0) *loss = sum / n;
}

// The means of the real ones and of the fakes: a block has the n of one kind.
extern "C" __global__ void mean_scores(const real* __restrict__ x, real* __restrict__ means, int n) {
  real sum = 0;
  for (int i = threadIdx.y; i < n; i += blockDim.y) sum += x[blockIdx.x * n + i];
  sum = join_rows<1024>(sum);
  if (threadIdx.y == 0) means[blockIdx.x] = sum / n;
}

// dx_i = -g sign_i / n where the margin 1 - sign_i x_i > 0, else 0.
extern "C" __global__ void discriminator_backward(const real* __restrict__ x, const real* __restrict__ g,
                                                  real* __restrict__ dx, int n) {
  int i = THREAD;
  if (i < 2 * n) dx[i] = counts(1 - sign(i, n) * x[i]) ? -*g * sign(i, n) / n : real(0);
}

// L_G = -sum_i x_i / n.
extern "C" __global__ void generator(const real* __restrict__ x, real* __restrict__ loss, int n) {
  real sum = 0;
  for (int i = threadIdx.y; i < n; i += blockDim.y) sum += x[i];
  sum = join_rows<1024>(sum);
  if (threadIdx.y == 0) *loss = -sum / n;
}

// dx_i = -g / n.
extern "C" __global__ void generator_backward(const real* __restrict__ g, real* __restrict__ dx, int n) {
  if (THREAD < n) dx[THREAD] = -*g / n;
}
