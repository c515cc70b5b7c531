// Batch normalisation (batch_norm.py) of x (N, P, C), P = H W positions; rows are the N P vectors of C channels.
//
// A block is blockDim.x channels by blockDim.y rows, and a thread goes down its channel's rows: neighbouring threads
// read neighbouring channels, whatever C is, and GROUP rows are on their way to each thread at a time. What the
// threads of a channel find is joined in shared memory, what blocks find is joined by the next kernel; in fixed order.

constexpr int GROUP = 8;
constexpr int THREADS = 256, MOST_THREADS = 1024;  // of a block; of one that has a row of threads for each slot

struct Moments {  // of some values: their number, mean, and sum of squared deviations from it
  real n, mean, square;
};

struct Sums {  // over some rows: of g, and of g xhat
  real g, gx;
};

// Of two sets of values together: Chan, Golub and LeVeque 1979.
__device__ inline Moments joined(Moments a, Moments b) {
  real n = a.n + b.n, share = n > 0 ? b.n / n : real(0), delta = b.mean - a.mean;
  return {n, a.mean + share * delta, a.square + b.square + delta * delta * a.n * share};
}

__device__ inline Sums joined(Sums a, Sums b) { return {a.g + b.g, a.gx + b.gx}; }

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

// Where image n of the whole batch is among all that `world` processes have, N images each: process n mod world has it.
__device__ inline int place(int n, int N, int world) { return n % world * N + n / world; }

// Moments of chunks, `step` positions of an image: both (N, 2, chunks, C), means and squares.
extern "C" __global__ void moments(const real* __restrict__ x, real* __restrict__ both, int P, int C, int step) {
  int c = THREAD, image = blockIdx.z, chunk = blockIdx.y, chunks = gridDim.y, first = chunk * step;
  int end = min(first + step, P);
  Moments all = {0, 0, 0};
  x += size_t(image) * P * C;
  if (c < C)
    for (int row = first + threadIdx.y; row < end; row += GROUP * blockDim.y) {
      real values[GROUP], n = min(GROUP, (end - row - 1) / int(blockDim.y) + 1), sum = 0, square = 0;
      load(values, x + c, row, end, C);
      for (real value : values) sum += value;
      for (int i = 0; i < GROUP; i++)
        if (i < n) square += (values[i] - sum / n) * (values[i] - sum / n);
      all = joined(all, {n, sum / n, square});
    }
  all = join_rows<THREADS>(all);
  if (c < C && threadIdx.y == 0) {
    both += (image * 2 * chunks + chunk) * C + c;
    both[0] = all.mean;
    both[chunks * C] = all.square;
  }
}

// Mean and biased variance (C,) of the whole batch, from those moments of all its images, (world, N, 2, chunks, C). The
// running ones, if there are any, move there: r <- r + rate (mean - r), and so for the variance.
extern "C" __global__ void statistics(const real* __restrict__ both, real* __restrict__ mean, real* __restrict__ var,
                                      real* running_mean, real* running_var, real rate, int N, int world, int P,
                                      int chunks, int C, int step) {
  int c = THREAD;
  Moments all = {0, 0, 0};
  if (c < C)
    for (int i = threadIdx.y; i < N * world * chunks; i += blockDim.y) {
      int chunk = i % chunks, at = (place(i / chunks, N, world) * 2 * chunks + chunk) * C + c;
      all = joined(all, {real(min(step, P - chunk * step)), both[at], both[at + chunks * C]});
    }
  all = join_rows<THREADS>(all);
  if (c < C && threadIdx.y == 0) {
    mean[c] = all.mean;
    var[c] = all.square / (real(N) * world * P);
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
        all = joined(all, {open, open * xhat});
      }
    }
  }
  all = join_rows<THREADS>(all);
  if (c < C && threadIdx.y == 0) {
    size_t i = (size_t(n) * gridDim.y + blockIdx.y) * C + c;
    sum_g[i] = all.g;
    sum_gx[i] = all.gx;
  }
}

// From those the sums of image n.
__device__ inline Sums of_image(const real* sum_g, const real* sum_gx, int n, int c, int chunks, int C) {
  Sums image = {0, 0};
  for (int chunk = 0; chunk < chunks; chunk++) {
    size_t i = (size_t(n) * chunks + chunk) * C + c;
    image = joined(image, {sum_g[i], sum_gx[i]});
  }
  return image;
}

// Those sums of each image, and its gain or else 1, for the other processes: (N, 3, C).
extern "C" __global__ void image_sums(const real* __restrict__ sum_g, const real* __restrict__ sum_gx,
                                      const real* __restrict__ gain, real* __restrict__ own, int N, int chunks, int C,
                                      int stride) {
  int c = THREAD % C, n = THREAD / C;
  if (n >= N) return;
  Sums image = of_image(sum_g, sum_gx, n, c, chunks, C);
  own += size_t(n) * 3 * C + c;
  own[0] = image.g;
  own[C] = image.gx;
  own[2 * C] = stride ? gain[n * stride + c] : real(1);
}

// dbias and dgain, of gain's shape, and the means of gain g and of gain g xhat over all m rows of the whole batch, (C,).
// The sums of all its images are `every` (world, N, 3, C), or null where all of them are here. A block has as many rows
// of threads as all processes together have slots.
extern "C" __global__ void join_sums(const real* __restrict__ sum_g, const real* __restrict__ sum_gx,
                                     const real* __restrict__ gain, const real* __restrict__ every,
                                     real* __restrict__ dgain, real* __restrict__ dbias, real* __restrict__ mean_g,
                                     real* __restrict__ mean_gx, int N, int world, int chunks, int C, int stride,
                                     real m) {
  int c = THREAD, slots = blockDim.y / world;
  Sums own = {0, 0}, all = {0, 0};
  if (c < C && threadIdx.y < slots)
    for (int n = threadIdx.y; n < N; n += slots) {
      Sums image = of_image(sum_g, sum_gx, n, c, chunks, C);
      own = joined(own, image);
      if (stride) {
        dbias[n * stride + c] = image.g;
        dgain[n * stride + c] = image.gx;
        real weight = gain[n * stride + c];
        if (!every) all = {fma(weight, image.g, all.g), fma(weight, image.gx, all.gx)};
      }
    }
  if (c < C && every)
    for (int n = threadIdx.y; n < N * world; n += blockDim.y) {
      const real* image = every + size_t(place(n, N, world)) * 3 * C + c;
      all = {fma(image[2 * C], image[0], all.g), fma(image[2 * C], image[C], all.gx)};  // rounds as it does above
    }
  own = join_rows<MOST_THREADS>(own);
  all = stride || every ? join_rows<MOST_THREADS>(all) : own;
  if (c >= C || threadIdx.y) return;
  if (!stride) {
    dbias[c] = own.g;
    dgain[c] = own.gx;
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
