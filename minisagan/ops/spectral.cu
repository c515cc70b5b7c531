// Spectral normalisation (spectral.py) of all layers of a network: three launches forward, two back. W^T of a layer is
// (K, O), element (k, o) at k O + o, or at o K + k where the output channels come first. It is cut into tiles of some
// rows k, a block each. Sums are of tiles in their order, so that they do not depend on which block is first.
//
// A block finds v = W^T u for its rows. It need not wait for |v|, by which l2(W v) does not change: it adds up what its
// rows give to W v while they are still in the cache. So a step of the iteration asks the memory for W once.

#define LAYERS 64
#define THREADS 256
#define COLUMNS 32
#define TINY real(1e-12)

struct Layer {
  const real* w;
  real* u;             // its state
  int K, O, first;     // first: whether the output channels come first
  int rows;            // in a tile
  int tile, group;     // its first tile, and its first group of COLUMNS columns, among those of all layers
  int y, v, o, share;  // where it begins in the arrays y, v; u and Wv; shares
};

struct Layers {  // comes by value, as part of the launch
  Layer layer[LAYERS];
  int count;
};

// The layer that this block works on: the last one whose first tile (or group) does not come after it.
template <int Layer::*start>
__device__ inline int find(const Layers& all) {
  int i = 0;
  while (i + 1 < all.count && all.layer[i + 1].*start <= int(blockIdx.x)) i++;
  return i;
}

// How many threads side by side take `count` elements: a power of two.
__device__ inline int across(int count, int most) {
  int threads = 1;
  while (threads < count && threads < most) threads *= 2;
  return threads;
}

// Of its tile: v = W^T u, the sum of v^2, and, if the iteration moves, its share of W v: shares (tiles, O).
extern "C" __global__ void iterate(Layers all, real* v, real* squares, real* shares, int move) {
  __shared__ real tile_v[THREADS], found[THREADS], shared[WARP];
  Layer layer = all.layer[find<&Layer::tile>(all)];
  int K = layer.K, O = layer.O, t = threadIdx.x, tile = blockIdx.x - layer.tile;
  int k0 = tile * layer.rows, rows = min(layer.rows, K - k0);
  size_t to_k = layer.first ? 1 : O, to_o = layer.first ? K : 1;
  const real* w = layer.w + k0 * to_k;

  int lanes = across(O, WARP), down = THREADS / lanes;  // `lanes` threads take a row
  for (int k = t / lanes; k - t / lanes < rows; k += down) {  // in step, since all lanes of a warp have to shuffle
    real sum = 0;
    if (k < rows)
      for (int o = t % lanes; o < O; o += lanes) sum += w[k * to_k + o * to_o] * layer.u[o];
    for (int apart = lanes / 2; apart; apart /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, apart);
    if (k < rows && t % lanes == 0) v[layer.v + k0 + k] = tile_v[k] = sum;
  }
  __syncthreads();
  real square = block_sum(t < rows ? tile_v[t] * tile_v[t] : real(0), shared);
  if (t == 0) squares[blockIdx.x] = square;
  if (!move) return;

  lanes = across(O, THREADS), down = THREADS / lanes;  // `down` threads take a column
  for (int o = t % lanes; o - t % lanes < O; o += lanes) {  // once, or else each thread has columns of its own
    real sum = 0;
    if (o < O)
      for (int k = t / lanes; k < rows; k += down) sum += w[k * to_k + o * to_o] * tile_v[k];
    found[t] = sum;
    for (int half = THREADS / 2; half >= lanes; half /= 2) {
      __syncthreads();
      if (t < half) found[t] += found[t + half];
    }
    if (t < lanes && o < O) shares[layer.share + tile * O + o] = found[t];
  }
}

// Wv = the sum of the tiles' shares: a block of COLUMNS by THREADS / COLUMNS for a group of columns.
extern "C" __global__ void join(Layers all, const real* shares, real* Wv) {
  __shared__ real found[THREADS];
  Layer layer = all.layer[find<&Layer::group>(all)];
  int o = (blockIdx.x - layer.group) * COLUMNS + threadIdx.x, tiles = (layer.K - 1) / layer.rows + 1;
  real sum = 0;
  if (o < layer.O)
    for (int tile = threadIdx.y; tile < tiles; tile += blockDim.y) sum += shares[layer.share + tile * layer.O + o];
  found[threadIdx.y * COLUMNS + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y || o >= layer.O) return;
  for (int i = 1; i < int(blockDim.y); i++) sum += found[i * COLUMNS + threadIdx.x];
  Wv[layer.o + o] = sum;
}

// y = w / sigma, v <- l2(v), and once for a layer: sigma, u <- l2(W v) if the iteration moves, and a copy of u.
extern "C" __global__ void divide(Layers all, real* v, const real* squares, const real* Wv, real* y, real* u_now,
                                  real* sigmas, int move) {
  __shared__ real shared[WARP];
  int number = find<&Layer::tile>(all);
  Layer layer = all.layer[number];
  int K = layer.K, O = layer.O, t = threadIdx.x, tiles = (K - 1) / layer.rows + 1, tile = blockIdx.x - layer.tile;
  real sum = 0;
  for (int i = t; i < tiles; i += THREADS) sum += squares[layer.tile + i];
  real norm = sqrt(block_sum(sum, shared)), scale = max(norm, TINY), sigma = norm;
  if (move) {  // sigma = |W v| / |v|, since v here is W^T u as it came
    sum = 0;
    for (int o = t; o < O; o += THREADS) sum += Wv[layer.o + o] / scale * (Wv[layer.o + o] / scale);
    sigma = sqrt(block_sum(sum, shared));
  }
  if (tile == 0) {
    for (int o = t; o < O; o += THREADS) {
      if (move) layer.u[o] = Wv[layer.o + o] / scale / max(sigma, TINY);
      u_now[layer.o + o] = layer.u[o];
    }
    if (t == 0) sigmas[number] = sigma;
  }
  int k0 = tile * layer.rows, rows = min(layer.rows, K - k0);
  if (t < rows) v[layer.v + k0 + t] /= scale;
  const real* w = layer.w + size_t(k0) * O;  // as many elements as the tile has, in the order of memory
  for (int i = t; i < rows * O; i += THREADS) y[layer.y + size_t(k0) * O + i] = w[i] / sigma;
}

// The sum of g y over as many elements as a tile has; in these last two kernels a layer's g comes in the place of w, or
// a null pointer where the layer's y had no part in the loss.
extern "C" __global__ void dot(Layers all, const real* y, real* sums) {
  __shared__ real shared[WARP];
  Layer layer = all.layer[find<&Layer::tile>(all)];
  if (!layer.w) return;
  int k0 = (blockIdx.x - layer.tile) * layer.rows, rows = min(layer.rows, layer.K - k0);
  const real* g = layer.w + size_t(k0) * layer.O;
  y += layer.y + size_t(k0) * layer.O;
  real sum = 0;
  for (int i = threadIdx.x; i < rows * layer.O; i += THREADS) sum += g[i] * y[i];
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// dW = (g - sum(g * y) u v^T) / sigma.
extern "C" __global__ void backward(Layers all, const real* sums, const real* u, const real* v, const real* sigmas,
                                    real* dw) {
  __shared__ real shared[WARP];
  int number = find<&Layer::tile>(all);
  Layer layer = all.layer[number];
  if (!layer.w) return;
  int K = layer.K, O = layer.O, tiles = (K - 1) / layer.rows + 1;
  real sum = 0, sigma = sigmas[number];
  for (int i = threadIdx.x; i < tiles; i += THREADS) sum += sums[layer.tile + i];
  sum = block_sum(sum, shared);
  int k0 = (blockIdx.x - layer.tile) * layer.rows, end = min(k0 + layer.rows, K) * O;
  for (int i = k0 * O + threadIdx.x; i < end; i += THREADS) {
    int k = layer.first ? i % K : i / O, o = layer.first ? i / K : i % O;
    dw[layer.y + i] = (layer.w[i] - sum * u[layer.o + o] * v[layer.v + k]) / sigma;
  }
}
