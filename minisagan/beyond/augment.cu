// Augmentation (the equations are in augment.py): a thread has one element of the result.

// The place (n, h, w, c) of element i of images (N, S, S, C).
struct Place {
  int n, h, w, c;

  __device__ Place(int i, int S, int C) : n(i / C / S / S), h(i / C / S % S), w(i / C % S), c(i % C) {}
};

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
  Place to(i, S, C);
  Move move(draws + to.n * draws_each, draws_each, S);
  int h = to.h - move.a, w = move.mirror(to.w - move.b);
  bool shown = move.inside(h, w) && !move.cut(to.h, to.w);
  y[i] = shown ? x[((to.n * S + h) * S + w) * C + to.c] : real(0);
}

// dx[h, w] = g[h + a, s(w) + b], 0 where that is in the square or outside
extern "C" __global__ void augment_back(real* dx, const real* g, const double* draws, int draws_each, int count, int S,
                                        int C) {
  int i = THREAD;
  if (i >= count) return;
  Place from(i, S, C);
  Move move(draws + from.n * draws_each, draws_each, S);
  int h = from.h + move.a, w = move.mirror(from.w) + move.b;
  bool shown = move.inside(h, w) && !move.cut(h, w);
  dx[i] = shown ? g[((from.n * S + h) * S + w) * C + from.c] : real(0);
}
