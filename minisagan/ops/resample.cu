// Resampling by two (the equations are in resample.py): a thread has one pixel's channel of the small image, s, and the
// four of the large image that belong to it, in the order (a, b) = (0, 0), (0, 1), (1, 0), (1, 1).

struct Block {
  int first, row, C;  // of the large image: the first of the four, and the length of a row

  // The block of element i of the small image; its rows are of `row` elements, C for each pixel.
  __device__ Block(int i, int row, int C) : first(4 * row * (i / row) + 2 * (i % row) - i % C), row(2 * row), C(C) {}

  __device__ int operator[](int k) const { return first + k / 2 * row + k % 2 * C; }
};

// large[2h + a, 2w + b] = factor small[h, w], plus what is there so far, if anything
extern "C" __global__ void repeat(real* large, const real* small, const real* so_far, real factor, int count, int row,
                                  int C) {
  int i = THREAD;
  if (i >= count) return;
  Block block(i, row, C);
  for (int k = 0; k < 4; k++) large[block[k]] = (so_far ? so_far[block[k]] : real(0)) + factor * small[i];
}

// small[h, w] = factor sum_ab large[2h + a, 2w + b]
extern "C" __global__ void sum_blocks(real* small, const real* large, real factor, int count, int row, int C) {
  int i = THREAD;
  if (i >= count) return;
  Block block(i, row, C);
  real sum = 0;
  for (int k = 0; k < 4; k++) sum += large[block[k]];
  small[i] = factor * sum;
}

// y = the largest of the four, and the winner, which of them it is: the first of several, NaN before all.
extern "C" __global__ void max_pool(real* y, const real* x, unsigned char* winner, int count, int row, int C) {
  int i = THREAD;
  if (i >= count) return;
  Block block(i, row, C);
  int best = 0;
  real largest = x[block[0]];
  for (int k = 1; k < 4; k++) {
    real v = x[block[k]];
    if (v > largest || v != v) largest = v, best = k;
  }
  winner[i] = best;
  y[i] = largest;
}

// dx = g at the winner, else 0
extern "C" __global__ void max_pool_back(real* dx, const real* g, const unsigned char* winner, int count, int row,
                                         int C) {
  int i = THREAD;
  if (i >= count) return;
  Block block(i, row, C);
  for (int k = 0; k < 4; k++) dx[block[k]] = k == winner[i] ? g[i] : real(0);
}
