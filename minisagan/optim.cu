// Adam and the running average of optim.py over flat arrays. t, and what follows from it, is read on the GPU, so that
// a recorded graph counts on.

// m <- beta1 m + (1 - beta1) g    v <- beta2 v + (1 - beta2) g^2    w <- w - lr mhat / (sqrt(vhat) + eps)
// where lr is multiplied by min(1, (steps + 1 - t) / (fall steps)), if it has a fall
extern "C" __global__ void adam(real* w, real* m, real* v, const real* g, int count, const long long* t,
                                const long long* steps, double fall, double lr, double beta1, double beta2, real eps) {
  __shared__ real scale, correction;  // mhat = scale m / lr, vhat = correction v
  if (threadIdx.x == 0) {
    if (fall) lr *= fmin(1.0, fmax(0.0, double(*steps + 1 - *t)) / (fall * double(*steps)));
    scale = real(lr / (1 - pow(beta1, double(*t))));
    correction = real(1 / (1 - pow(beta2, double(*t))));
  }
  __syncthreads();
  real one_minus_beta1 = real(1 - beta1), one_minus_beta2 = real(1 - beta2);
  for (int i = THREAD; i < count; i += STRIDE) {
    real gi = g[i], mi = m[i], vi = v[i];
    m[i] = mi += one_minus_beta1 * (gi - mi);
    v[i] = vi += one_minus_beta2 * (gi * gi - vi);
    w[i] -= scale * mi / (sqrt(vi * correction) + eps);
  }
}

// a <- a + (1 - d_t) (w - a)    d_t = min(decay, (1 + t) / (10 + t))
extern "C" __global__ void ema(real* a, const real* w, int count, const long long* t, double decay) {
  real rest = real(1 - fmin(decay, double(1 + *t) / double(10 + *t)));
  for (int i = THREAD; i < count; i += STRIDE) a[i] += rest * (w[i] - a[i]);
}
