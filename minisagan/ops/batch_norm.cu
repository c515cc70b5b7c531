// Batch normalisation (batch_norm.py) of x (N, P, C), P = H W positions; rows are the N P vectors of C channels.
//
// A block is blockDim.x channels by blockDim.y rows, and a thread goes down its channel's rows: neighbouring threads
// read neighbouring channels, whatever C is, and GROUP rows are on their way to each thread at a time. What the
// threads of a channel find is joined in shared memory; what blocks find is joined by the last block that has these
// channels or, where several processes share the batch, by the next kernel; in fixed order, which is the same for both.

constexpr int GROUP = 8;
constexpr int ROWS = 32;  // of threads that join what blocks found
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

// What find(row) gives for so many rows, joined in the order of join_rows: a thread has up to four of them, blockDim.y
// apart, and row 0 gets it.
template <int THREADS, class Find>
__device__ inline auto join_all(int rows, Find find) {
  decltype(find(0)) found[4] = {};
#pragma unroll
  for (int i = 0; i < 4; i++)
    if (int row = threadIdx.y + i * blockDim.y; row < rows) found[i] = find(row);
  return join_rows<THREADS>(joined(joined(found[0], found[2]), joined(found[1], found[3])));
}

// Mean and biased variance (C,) of the whole batch, from moments of all its images, `both` (world, N, 2, chunks, C).
// The running ones, if there are any, move there: r <- r + rate (mean - r), and so for the variance.
struct Statistics {
  real *mean, *var, *running_mean, *running_var;

  template <int THREADS>
  __device__ void join(const real* both, real rate, int N, int world, int P, int chunks, int C, int step) const {
    int c = THREAD;
    Moments all = join_all<THREADS>(c < C ? ROWS : 0, [&](int row) {
      Moments all = {0, 0, 0};
      for (int i = row; i < N * world * chunks; i += ROWS) {
        int chunk = i % chunks, at = (place(i / chunks, N, world) * 2 * chunks + chunk) * C + c;
        all = joined(all, {real(min(step, P - chunk * step)), both[at], both[at + chunks * C]});
      }
      return all;
    });
    if (c >= C || threadIdx.y) return;
    mean[c] = all.mean;
    var[c] = all.square / (real(N) * world * P);
    if (running_mean) running_mean[c] += rate * (mean[c] - running_mean[c]);
    if (running_var) running_var[c] += rate * (var[c] - running_var[c]);
  }
};
#define STATISTICS_TAKE real *mean, real *var, real *running_mean, real *running_var, real rate

// Moments of chunks, `step` positions of an image: both (N, 2, chunks, C), means and squares. With `counters`, of which
// each 32 channels have one, also the statistics.
extern "C" __global__ void moments(const real* __restrict__ x, real* both, STATISTICS_TAKE, unsigned* counters, int P,
                                   int C, int step) {
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
    real* to = both + (image * 2 * chunks + chunk) * C + c;
    to[0] = all.mean;
    to[chunks * C] = all.square;
  }
  if (counters && last_block(counters + blockIdx.x, chunks * gridDim.z))
    Statistics{mean, var, running_mean, running_var}.join<THREADS>(both, rate, gridDim.z, 1, P, chunks, C, step);
}

extern "C" __global__ void statistics(const real* both, STATISTICS_TAKE, int N, int world, int P, int chunks, int C,
                                      int step) {
  Statistics{mean, var, running_mean, running_var}.join<THREADS>(both, rate, N, world, P, chunks, C, step);
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

// From the sums that are stored by `sums`, those of image n.
__device__ inline Sums of_image(const real* sum_g, const real* sum_gx, int n, int c, int chunks, int C) {
  Sums image = {0, 0};
  for (int chunk = 0; chunk < chunks; chunk++) {
    size_t i = (size_t(n) * chunks + chunk) * C + c;
    image = joined(image, {sum_g[i], sum_gx[i]});
  }
  return image;
}

struct Gradients {  // of a row of threads: sums of g and g xhat over its images, and of these times the gain over all
  Sums own, all;
};
__device__ inline Gradients joined(Gradients a, Gradients b) { return {joined(a.own, b.own), joined(a.all, b.all)}; }

// dbias and dgain, of gain's shape, and the means of gain g and of gain g xhat over all m rows of the whole batch,
// (C,). The sums of all its images are `every` (world, N, 3, C), or null where all of them are here. There are as many
// rows as all processes together have slots.
struct Joint {
  real *dgain, *dbias, *mean_g, *mean_gx;

  template <int THREADS>
  __device__ void join(int rows, const real* sum_g, const real* sum_gx, const real* gain, const real* every, int N,
                       int world, int chunks, int C, int stride, real m) const {
    int c = THREAD, slots = rows / world;
    auto [own, all] = join_all<THREADS>(c < C ? rows : 0, [&](int row) {
      Sums own = {0, 0}, all = {0, 0};
      for (int n = row; row < slots && n < N; n += slots) {
        Sums image = of_image(sum_g, sum_gx, n, c, chunks, C);
        own = joined(own, image);
        if (stride) {
          dbias[n * stride + c] = image.g;
          dgain[n * stride + c] = image.gx;
          real weight = gain[n * stride + c];
          if (!every) all = {fma(weight, image.g, all.g), fma(weight, image.gx, all.gx)};
        }
      }
      for (int n = row; every && n < N * world; n += rows) {
        const real* image = every + size_t(place(n, N, world)) * 3 * C + c;
        all = {fma(image[2 * C], image[0], all.g), fma(image[2 * C], image[C], all.gx)};  // rounds as it does above
      }
      return Gradients{own, all};
    });
    if (c >= C || threadIdx.y) return;
    if (!stride && !every) all = own;
    if (!stride) {
      dbias[c] = own.g;
      dgain[c] = own.gx;
      all = {gain[c] * all.g, gain[c] * all.gx};
    }
    mean_g[c] = all.g / m;
    mean_gx[c] = all.gx / m;
  }
};
#define GRADIENTS_TAKE real *dgain, real *dbias, real *mean_g, real *mean_gx

// sum g and sum g xhat over `step` positions of an image: both (N, chunks, C). With `counters`, of which each 32
// channels have one, also what join_sums makes of them.
extern "C" __global__ void sums(const real* __restrict__ x, const real* __restrict__ mean,
                                const real* __restrict__ var, const real* __restrict__ gain,
                                const real* __restrict__ bias, const real* __restrict__ g, real* sum_g, real* sum_gx,
                                GRADIENTS_TAKE, unsigned* counters, real m, int P, int C, int step, int stride,
                                int relu, real eps) {
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
  if (counters && last_block(counters + blockIdx.x, gridDim.y * gridDim.z))
    Joint{dgain, dbias, mean_g, mean_gx}.join<THREADS>(ROWS, sum_g, sum_gx, gain, nullptr, gridDim.z, 1, gridDim.y, C,
                                                       stride, m);
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

extern "C" __global__ void join_sums(const real* sum_g, const real* sum_gx, const real* gain, const real* every,
                                     GRADIENTS_TAKE, int N, int world, int chunks, int C, int stride, real m) {
  Joint{dgain, dbias, mean_g, mean_gx}.join<MOST_THREADS>(blockDim.y, sum_g, sum_gx, gain, every, N, world, chunks, C,
                                                          stride, m);
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
