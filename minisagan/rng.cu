// Noise without a state, as in rng.py: a thread for each block of four words. The step is read from the GPU's memory,
// so that a recorded graph draws new numbers each time.

typedef unsigned long long word;

#define TO_UNIT 1.1102230246251565e-16  // 2^-53
#define TWO_PI 6.283185307179586

struct Block {
  word w[4];
};

// bits[4b .. 4b + 3] = Philox4x64-10(key = (seed, stream), counter = (b, step, 0, 0))
__device__ Block philox(word b, word step, word seed, word stream) {
  const word M0 = 0xD2E7470EE14C6C93ull, M1 = 0xCA5A826395121157ull;
  word c0 = b, c1 = step, c2 = 0, c3 = 0, k0 = seed, k1 = stream;
  for (int round = 0; round < 10; round++) {
    word high0 = __umul64hi(M0, c0), low0 = M0 * c0, high1 = __umul64hi(M1, c2), low1 = M1 * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B97F4A7C15ull;
    k1 += 0xBB67AE8584CAA73Bull;
  }
  return {{c0, c1, c2, c3}};
}

// x[i] = (bits[i] >> 11) / 2^53
extern "C" __global__ void uniform(double* x, int size, word seed, word stream, const long long* step) {
  int b = THREAD;
  if (4 * b >= size) return;
  Block block = philox(b, *step, seed, stream);
  for (int k = 0; k < 4 && 4 * b + k < size; k++) x[4 * b + k] = (block.w[k] >> 11) * TO_UNIT;
}

// Box and Muller: x[2i], x[2i + 1] = sqrt(-2 ln u1) (cos, sin)(2 pi u2), in double, rounded once
extern "C" __global__ void normal(float* x, int size, word seed, word stream, const long long* step) {
  int b = THREAD;
  if (4 * b >= size) return;
  Block block = philox(b, *step, seed, stream);
  for (int k = 0; k < 4; k += 2) {
    double radius = sqrt(-2 * log(((block.w[k] >> 11) + 1) * TO_UNIT));
    double angle = TWO_PI * ((block.w[k + 1] >> 11) * TO_UNIT);
    if (4 * b + k < size) x[4 * b + k] = float(radius * cos(angle));
    if (4 * b + k + 1 < size) x[4 * b + k + 1] = float(radius * sin(angle));
  }
}

// y[i] = (bits[i] >> 32) * classes >> 32
extern "C" __global__ void labels(long long* y, int size, word seed, word stream, const long long* step, word classes) {
  int b = THREAD;
  if (4 * b >= size) return;
  Block block = philox(b, *step, seed, stream);
  for (int k = 0; k < 4 && 4 * b + k < size; k++) y[4 * b + k] = (block.w[k] >> 32) * classes >> 32;
}
