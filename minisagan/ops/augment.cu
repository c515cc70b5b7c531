// Augmentation (the equations are in augment.py): a thread has one element of the result.

// What the draws of one image decide: its shift, the first row and column of the square, and whether it is mirrored.
struct Move {
  int a, b, top, left, S;
  bool mirrored;

  __device__ Move(const double* u, int draws_each, int S)
      : a(shift(u[0], S)), b(shift(u[1], S)), top(int(u[2] * S) - S / 4), left(int(u[3] * S) - S / 4), S(S),
        mirrored(draws_each == 5 && u[4] < 0.5) {}

  static __device__ int shift(double u, int S) { return int(u * (2 * (S / 8) + 1)) - S / 8; }

  __device__ int mirror(int w) const { return mirrored ? S - 1 - w : w; }

  __device__ bool inside(int h, int w) const { return h >= 0 && h < S && w >= 0 && w < S; }

  __device__ bool cut(int h, int w) const {
    return h >= top && h < top + S / 4 * 2 && w >= left && w < left + S / 4 * 2;
  }
};

// y[h, w] = x[h - a, s(w - b)], 0 in the square and outside
extern "C" __global__ void augment(real* y, const real* x, const double* draws, int draws_each, int count, int S,
                                   int C) {
  int i = THREAD;
  if (i >= count) return;
  int c = i % C, w = i / C % S, h = i / C / S % S, n = i / C / S / S;
  Move move(draws + n * draws_each, draws_each, S);
  int from_h = h - move.a, from_w = move.mirror(w - move.b);
  bool shown = move.inside(from_h, from_w) && !move.cut(h, w);
  y[i] = shown ? x[((n * S + from_h) * S + from_w) * C + c] : real(0);
}

// dx[h, w] = g[h + a, s(w) + b], 0 where that is in the square or outside
extern "C" __global__ void augment_back(real* dx, const real* g, const double* draws, int draws_each, int count, int S,
                                        int C) {
  int i = THREAD;
  if (i >= count) return;
  int c = i % C, w = i / C % S, h = i / C / S % S, n = i / C / S / S;
  Move move(draws + n * draws_each, draws_each, S);
  int to_h = h + move.a, to_w = move.mirror(w) + move.b;
  bool shown = move.inside(to_h, to_w) && !move.cut(to_h, to_w);
  dx[i] = shown ? g[((n * S + to_h) * S + to_w) * C + c] : real(0);
}
