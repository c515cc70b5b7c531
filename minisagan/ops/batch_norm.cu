// Batch normalisation (batch_norm_cuda.py) of x (N, P, C), P = H W positions; rows are the N P vectors of C channels.
//
// A block is blockDim.x channels by blockDim.y rows, and a thread goes down its channel's rows: neighbouring threads
// read neighbouring channels, whatever C is, and GROUP rows are on their way to each thread at a time. What the
// threads of a channel find is joined in shared memory, what blocks find is joined by the next kernel; in fixed order.

constexpr int GROUP = 8;
constexpr int THREADS = 256;

struct Moments {  // of some values: their number, mean, and sum of squared deviations from it
  real n, mean, square;
};

struct Sums {  // over some rows: of g, and of g xhat
  real g, gx;
};

// Of two sets of values together: Chan, Golub and LeVeque 1979.
__device__ inline Moments join(Moments a, Moments b) {
  real n = a.n + b.n, share = n > 0 ? b.n / n : real(0), delta = b.mean - a.mean;
  return {n, a.mean + share * delta, a.square + b.square + delta * delta * a.n * share};
}

__device__ inline Sums join(Sums a, Sums b) { return {a.g + b.g, a.gx + b.gx}; }

// All that the threads of one channel found, for its thread in the first row; blockDim.y is a power of two.
template <typename Found>
__device__ inline Found join_rows(Found found) {
  __shared__ Found shared[THREADS];
  int t = threadIdx.y * blockDim.x + threadIdx.x;
  shared[t] = found;
  for (int rows = blockDim.y / 2; rows; rows /= 2) {
    __syncthreads();
    if (threadIdx.y < rows) shared[t] = join(shared[t], shared[t + rows * blockDim.x]);
  }
  return shared[t];
}

// What a thread needs of its channel c in image n. gain and bias are (C,), stride 0, or (N, C), stride C.
struct Channel {
  real mean, rstd, gain, bias;

  __device__ Channel(const real* mean, const real* var, const real* gain, const real* bias, int n, int c, int stride,
                     real eps)
      : mean(mean[c]), rstd(1 / sqrt(var[c] + eps)), gain(gain[n * stride + c]), bias(bias[n * stride + c]) {}
  __device__ real xhat(real x) const { return (x - mean) * rstd; }
  __device__ real y(real xhat) const { return fma(gain, xhat, bias); }  // rounds alike wherever it stands
};

// GROUP rows of the channel x, from `row` on, blockDim.y apart; 0 from `end` on.
__device__ inline void load(real (&values)[GROUP], const real* __restrict__ x, int row, int end, int C) {
  for (int i = 0; i < GROUP; i++, row += blockDim.y) values[i] = row < end ? x[size_t(row) * C] : real(0);
}

// Moments of the `step` rows of x (rows, C) from blockIdx.y on: means and squares (chunks, C).
extern "C" __global__ void moments(const real* __restrict__ x, real* __restrict__ means, real* __restrict__ squares,
                                   int rows, int C, int step) {
  int c = THREAD, first = blockIdx.y * step, end = min(first + step, rows);
  Moments all = {0, 0, 0};
  if (c < C)
    for (int row = first + threadIdx.y; row < end; row += GROUP * blockDim.y) {
      real values[GROUP], n = min(GROUP, (end - row - 1) / int(blockDim.y) + 1), sum = 0, square = 0;
      load(values, x + c, row, end, C);
      for (real value : values) sum += value;
      for (int i = 0; i < GROUP; i++)
        if (i < n) square += (values[i] - sum / n) * (values[i] - sum / n);
      all = join(all, {n, sum / n, square});
    }
  all = join_rows(all);
  if (c < C && threadIdx.y == 0) {
    means[blockIdx.y * C + c] = all.mean;
    squares[blockIdx.y * C + c] = all.square;
  }
}

// Mean and biased variance (C,) of all `rows` rows, from the moments of chunks of `step` rows. The running ones, if there
// are any, move there: r <- r + rate (mean - r), and so for the variance.
extern "C" __global__ void statistics(const real* __restrict__ means, const real* __restrict__ squares,
                                      real* __restrict__ mean, real* __restrict__ var, real* running_mean,
                                      real* running_var, real rate, int rows, int C, int step) {
  int c = THREAD;
  Moments all = {0, 0, 0};
  if (c < C)
    for (int chunk = threadIdx.y; chunk * step < rows; chunk += blockDim.y)
      all = join(all, {real(min(step, rows - chunk * step)), means[chunk * C + c], squares[chunk * C + c]});
  all = join_rows(all);
  if (c < C && threadIdx.y == 0) {
    mean[c] = all.mean;
    var[c] = all.square / rows;
    if (running_mean) running_mean[c] += rate * (mean[c] - running_mean[c]);
    if (running_var) running_var[c] += rate * (var[c] - running_var[c]);
  }
}

// y = gain xhat + bias, and 0 for negative ones with `relu`; n is blockIdx.z.
extern "C" __global__ void normalise(const real* __restrict__ x, const real* __restrict__ mean,
                                     const real* __restrict__ var, const real* __restrict__ gain,
                                     const real* __restrict__ bias, real* __restrict__ y, int P,
                                     int C, int step, int stride, int relu, real eps) {
  int c = THREAD, n = blockIdx.z, first = blockIdx.y * step, end = min(first + step, P);
  if (c >= C) return;
  Channel channel(mean, var, gain, bias, n, c, stride, eps);
  size_t image = size_t(n) * P * C + c;
  for (int p = first + threadIdx.y; p < end; p += GROUP * blockDim.y) {
    real xs[GROUP];
    load(xs, x + image, p, end, C);
    for (int k = 0, q = p; k < GROUP && q < end; k++, q += blockDim.y) {
      size_t i = image + size_t(q) * C;
      real value = channel.y(channel.xhat(xs[k]));
      y[i] = relu && value < 0 ? real(0) : value;  // so that a NaN stays one
    }
  }
}

// Where y was set to 0, the cotangent is 0.
__device__ inline real gated(real g, real y, int relu) { return !relu || y > 0 ? g : real(0); }

// sum g and sum g xhat over `step` positions of an image: both (N, chunks, C).
extern "C" __global__ void sums(const real* __restrict__ x, const real* __restrict__ mean,
                                const real* __restrict__ var, const real* __restrict__ gain,
                                const real* __restrict__ bias,
                                const real* __restrict__ g, real* __restrict__ sum_g, real* __restrict__ sum_gx, int P,
                                int C, int step, int stride, int relu, real eps) {
  int c = THREAD, n = blockIdx.z, first = blockIdx.y * step, end = min(first + step, P);
  Sums all = {0, 0};
  if (c < C) {
    Channel channel(mean, var, gain, bias, n, c, stride, eps);
    size_t image = size_t(n) * P * C + c;
    for (int p = first + threadIdx.y; p < end; p += GROUP * blockDim.y) {
      real xs[GROUP], gs[GROUP];
      load(xs, x + image, p, end, C);
      load(gs, g + image, p, end, C);
      for (int k = 0, q = p; k < GROUP && q < end; k++, q += blockDim.y) {
        real xhat = channel.xhat(xs[k]), open = gated(gs[k], channel.y(xhat), relu);
        all = join(all, {open, open * xhat});
      }
    }
  }
  all = join_rows(all);
  if (c < C && threadIdx.y == 0) {
    size_t i = (size_t(n) * gridDim.y + blockIdx.y) * C + c;
    sum_g[i] = all.g;
    sum_gx[i] = all.gx;
  }
}

// From those: dbias and dgain, of gain's shape, and the means of gain g and of gain g xhat over all m rows, (C,).
extern "C" __global__ void join_sums(const real* __restrict__ sum_g, const real* __restrict__ sum_gx,
                                     const real* __restrict__ gain, real* __restrict__ dgain, real* __restrict__ dbias,
                                     real* __restrict__ mean_g, real* __restrict__ mean_gx, int N, int chunks, int C,
                                     int stride, int m) {
  int c = THREAD;
  Sums all = {0, 0};
  if (c < C)
    for (int n = threadIdx.y; n < N; n += blockDim.y) {
      Sums image = {0, 0};
      for (int chunk = 0; chunk < chunks; chunk++) {
        size_t i = (size_t(n) * chunks + chunk) * C + c;
        image = join(image, {sum_g[i], sum_gx[i]});
      }
      if (stride) {
        dbias[n * stride + c] = image.g;
        dgain[n * stride + c] = image.gx;
        image = {gain[n * stride + c] * image.g, gain[n * stride + c] * image.gx};
      }
      all = join(all, image);
    }
  all = join_rows(all);
  if (c >= C || threadIdx.y) return;
  if (!stride) {
    dbias[c] = all.g;
    dgain[c] = all.gx;
    all = {gain[c] * all.g, gain[c] * all.gx};
  }
  mean_g[c] = all.g / m;
  mean_gx[c] = all.gx / m;
}

// dx = (gain g - mean(gain g) - xhat mean(gain g xhat)) rstd; without those means where the statistics were given.
extern "C" __global__ void backward(const real* __restrict__ x, const real* __restrict__ mean,
                                    const real* __restrict__ var, const real* __restrict__ gain,
                                    const real* __restrict__ bias,
                                    const real* __restrict__ g, const real* __restrict__ mean_g,
                                    const real* __restrict__ mean_gx, real* __restrict__ dx, int P, int C, int step,
                                    int stride, int relu, real eps) {
  int c = THREAD, n = blockIdx.z, first = blockIdx.y * step, end = min(first + step, P);
  if (c >= C) return;
  Channel channel(mean, var, gain, bias, n, c, stride, eps);
  real a = mean_g ? mean_g[c] : real(0), b = mean_gx ? mean_gx[c] : real(0);
  size_t image = size_t(n) * P * C + c;
  for (int p = first + threadIdx.y; p < end; p += GROUP * blockDim.y) {
    real xs[GROUP], gs[GROUP];
    load(xs, x + image, p, end, C);
    load(gs, g + image, p, end, C);
    for (int k = 0, q = p; k < GROUP && q < end; k++, q += blockDim.y) {
      size_t i = image + size_t(q) * C;
      real xhat = channel.xhat(xs[k]), open = gated(gs[k], channel.y(xhat), relu);
      dx[i] = (channel.gain * open - a - xhat * b) * channel.rstd;
    }
  }
}
