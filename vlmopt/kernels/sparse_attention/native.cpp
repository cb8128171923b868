// Block-sparse attention on CPUs: keys of a tile are named here, products are those of the BLAS that torch brings.
//
// A tile's scores over CHUNK keys stay in a core's cache. Weights are relative to the highest score so far (online
// softmax); what was summed before is scaled to a higher one when it comes. Semantics: see sparse_attention.
#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

extern "C" void sgemm_(const char*, const char*, const int*, const int*, const int*, const float*, const float*,
                       const int*, const float*, const int*, const float*, float*, const int*);

namespace {

constexpr int64_t CHUNK = 512;    // keys at a time: scores of 128 rows are 256 KB
constexpr int64_t LANES = 16;     // keys are padded to a multiple
constexpr float UNSEEN = -1e30f;  // score of a key that a row does not see; -inf - -inf would be NaN
constexpr int32_t ANY = -1;       // class of a key that rows of all classes see

struct Call {  // mirrored, in this order, by native.py
    const void *q, *k, *v;
    void* out;                          // [B, heads, Sq, D], zeros
    float* lse;                         // [B, heads, Sq], -inf; or null
    const int64_t* heads;               // [tables, shared]: query heads
    const int64_t *rows_end, *offset, *start, *first;  // [B]: real rows, position of row 0, first real key, first seen
    const int64_t* run_ptr;             // [B, tables, tiles + 1]
    const int32_t* run_start;
    const int64_t* col_ptr;             // null: none; so for all below
    const int32_t* col_idx;
    const int32_t* q_order;             // [B, 1 | tables, slots]
    const int32_t* k_order;             // [B, 1 | Hk, key slots]
    const int32_t *grid, *slash;        // [B, tables, 3], [B, tables, 2]
    const int64_t* key_position;        // [B, 1 | Hk, W]
    const float* bias;                  // [B, 1 | Hk, W]
    int64_t q_strides[3], k_strides[3], v_strides[3];  // of sample, head and row, in elements
    int64_t batch, query_heads, key_heads, tables, shared, rows, width, d, tile, tiles, run, row_slots, key_slots;
    int64_t q_orders, k_orders, positions, biases;  // second dimension of these tables
    int64_t causal_shift, row_step;
    float scale, softcap;  // softcap 0: none
};

// exp(x) for x <= 0 with a relative error of 3e-7: 2^n times a polynomial in the rest of the exponent.
inline float exponential(float x) {
    const float t = std::max(x, -87.0f) * 1.44269504f;
    const float n = std::nearbyint(t);
    const float f = (t - n) * 0.69314718f;
    const float p =
        1 + f * (1 + f * (0.5f + f * (0.16666667f + f * (0.041666668f + f * (0.0083333f + f * 0.0013889f)))));
    const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return x < -87 ? 0 : p * power;
}

inline uint16_t rounded(float x) {  // to bfloat16, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float widened(uint16_t x) {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

struct Rows {  // of one tile, R = shared * tile
    std::vector<int64_t> target;  // row of the output, -1 for none
    std::vector<int32_t> last, place, residue;
};

struct Keys {
    std::vector<int32_t> key, position, kind;  // kind: the residue that a row must have, or ANY
    int64_t sure;                              // so many come first that all rows see
};

// STORED: uint16_t for bfloat16, or float. PAIRED: products of bfloat16 in hardware; else they are widened.
template <typename Stored, bool PAIRED>
class Worker {
    using Held = std::conditional_t<PAIRED, uint16_t, float>;

    const Call& c;
    const int64_t R, D;
    const float factor;  // what raw scores are yet to be multiplied by in the softmax
    Rows rows;
    Keys keys, rest;
    std::vector<Held> q, k, v, weights;
    std::vector<float> scores, sum, high, total;

  public:
    explicit Worker(const Call& call)
        : c(call), R(c.shared * c.tile), D(c.d), factor(c.softcap > 0 || c.bias ? 1 : c.scale), q(R * D), k(CHUNK * D),
          v(CHUNK * D), weights(R * CHUNK), scores(R * CHUNK), sum(R * D), high(R), total(R) {
        rows.target.resize(R);
        for (auto* x : {&rows.last, &rows.place, &rows.residue}) x->resize(R);
    }

    void tile(int64_t b, int64_t h, int64_t t) {
        if (!find_rows(b, h, t)) return;
        const int64_t key_head = c.heads[h * c.shared] * c.key_heads / c.query_heads;
        find_keys(b, h, t, key_head);
        std::fill(high.begin(), high.end(), UNSEEN);
        std::fill(total.begin(), total.end(), 0.0f);
        std::fill(sum.begin(), sum.end(), 0.0f);
        const int64_t count = keys.key.size();
        for (int64_t i = 0; i < count; i += CHUNK) attend(b, key_head, i, std::min(CHUNK, count - i));
        write();
    }

  private:
    bool find_rows(int64_t b, int64_t h, int64_t t) {
        const int32_t* order = of(c.q_order, b, h, c.q_orders, c.row_slots);
        const int32_t* slash = c.slash ? c.slash + (b * c.tables + h) * 2 : nullptr;
        bool any = false;
        for (int64_t r = 0; r < R; ++r) {
            const int64_t slot = t * c.tile + r % c.tile, number = h * c.shared + r / c.tile;
            const int64_t row = slot >= c.row_slots ? -1 : order ? order[slot] : slot;
            const int64_t place = row + c.offset[b];
            const bool real = row >= 0 && row < c.rows_end[b] && place >= c.start[b];
            const int64_t last = row / c.row_step * c.row_step + c.offset[b] - c.causal_shift;
            rows.target[r] = real ? (b * c.tables * c.shared + number) * c.rows + row : -1;
            rows.last[r] = real ? last : -1;
            rows.place[r] = place;
            rows.residue[r] = slash && slash[0] && real ? modulo(place - slash[1], slash[0]) : ANY - 1;
            any |= real && last >= c.first[b];
            const auto* from = static_cast<const Stored*>(c.q) + b * c.q_strides[0] + c.heads[number] * c.q_strides[1] +
                               std::max<int64_t>(row, 0) * c.q_strides[2];
            copy(&q[r * D], from);
        }
        return any;
    }

    static int32_t modulo(int64_t x, int64_t stride) { return static_cast<int32_t>((x % stride + stride) % stride); }

    void find_keys(int64_t b, int64_t h, int64_t t, int64_t key_head) {
        const int64_t table = b * c.tables + h;
        int32_t least = std::numeric_limits<int32_t>::max(), last = -1;
        for (int64_t r = 0; r < R; ++r) {
            if (rows.target[r] < 0) continue;
            least = std::min(least, rows.last[r]);
            last = std::max(last, rows.last[r]);
        }
        const auto* order = of(c.k_order, b, key_head, c.k_orders, c.key_slots);
        const auto* position = of(c.key_position, b, key_head, c.positions, c.width);
        const auto* bias = of(c.bias, b, key_head, c.biases, c.width);
        for (auto* list : {&keys, &rest}) list->key.clear(), list->position.clear(), list->kind.clear();
        auto add = [&](int64_t key, int32_t kind) {
            if (key < 0 || key >= c.width) return;
            const int64_t place = position ? position[key] : key;
            if (place < c.first[b] || place > last || (bias && bias[key] == -INFINITY)) return;
            Keys& list = place <= least && kind == ANY ? keys : rest;
            list.key.push_back(key), list.position.push_back(place), list.kind.push_back(kind);
        };
        auto add_slot = [&](int64_t slot) {
            if (slot < c.key_slots) add(order ? order[slot] : slot, ANY);
        };
        const int64_t* ptr = c.run_ptr + table * (c.tiles + 1) + t;
        for (int64_t i = ptr[0]; i < ptr[1]; ++i)
            for (int64_t j = 0; j < c.run; ++j) add_slot(c.run_start[i] + j);
        if (c.col_ptr) {
            ptr = c.col_ptr + table * (c.tiles + 1) + t;
            for (int64_t i = ptr[0]; i < ptr[1]; ++i) add_slot(c.col_idx[i]);
        }
        const int32_t* grid = c.grid && c.grid[table * 3 + 2] ? c.grid + table * 3 : nullptr;
        if (grid)
            for (int64_t slot = grid[1]; slot < c.key_slots; slot += grid[0]) add_slot(slot);
        const int32_t* slash = c.slash ? c.slash + table * 2 : nullptr;
        if (slash && slash[0]) {
            std::vector<int32_t> residues(rows.residue);
            std::sort(residues.begin(), residues.end());
            residues.erase(std::unique(residues.begin(), residues.end()), residues.end());
            for (int32_t residue : residues)
                for (int64_t key = residue; residue >= 0 && key <= last; key += slash[0])
                    if (!(grid && key >= grid[1] && (key - grid[1]) % grid[0] == 0)) add(key, residue);
        }
        keys.sure = keys.key.size();
        keys.key.insert(keys.key.end(), rest.key.begin(), rest.key.end());
        keys.position.insert(keys.position.end(), rest.position.begin(), rest.position.end());
        keys.kind.insert(keys.kind.end(), rest.kind.begin(), rest.kind.end());
    }

    template <typename T>
    static const T* of(const T* x, int64_t b, int64_t h, int64_t heads, int64_t size) {
        return x ? x + (b * heads + (heads > 1 ? h : 0)) * size : nullptr;
    }

    void attend(int64_t b, int64_t key_head, int64_t from, int64_t n) {
        const int64_t width = (n + LANES - 1) / LANES * LANES;
        const auto* key = static_cast<const Stored*>(c.k) + b * c.k_strides[0] + key_head * c.k_strides[1];
        const auto* value = static_cast<const Stored*>(c.v) + b * c.v_strides[0] + key_head * c.v_strides[1];
        multiply_keys(key, from, n, width);
        shape_scores(of(c.bias, b, key_head, c.biases, c.width), from, n, width);
        if (from + n > keys.sure) mask(from, n, width);
        for (int64_t r = 0; r < R; ++r) {
            if (width > n) std::fill(&scores[r * width + n], &scores[r * width] + width, UNSEEN);
            soften(r, width);
        }
        add_values(value, from, n, width);
    }

    void shape_scores(const float* bias, int64_t from, int64_t n, int64_t width) {
        if (factor == c.scale) return;
        for (int64_t i = 0; i < R * width; ++i) scores[i] *= c.scale;
        if (c.softcap > 0)
            for (int64_t i = 0; i < R * width; ++i) scores[i] = c.softcap * std::tanh(scores[i] / c.softcap);
        if (bias)
            for (int64_t r = 0; r < R; ++r)
                for (int64_t j = 0; j < n; ++j) scores[r * width + j] += bias[keys.key[from + j]];
    }

    void mask(int64_t from, int64_t n, int64_t width) {
        const int64_t first = std::max<int64_t>(keys.sure - from, 0);
        const int32_t *position = &keys.position[from], *kind = &keys.kind[from];
        for (int64_t r = 0; r < R; ++r) {
            float* row = &scores[r * width];
            const int32_t last = rows.last[r], own = rows.residue[r];
            for (int64_t j = first; j < n; ++j)
                row[j] = (position[j] <= last) & ((kind[j] == ANY) | (kind[j] == own)) ? row[j] : UNSEEN;
        }
    }

    void soften(int64_t r, int64_t width) {
        const float* row = &scores[r * width];
        Held* weight = &weights[r * width];
        float tops[LANES];
        std::fill(tops, tops + LANES, high[r]);
        for (int64_t j = 0; j < width; j += LANES)
#pragma omp simd
            for (int64_t i = 0; i < LANES; ++i) tops[i] = row[j + i] > tops[i] ? row[j + i] : tops[i];
        const float top = *std::max_element(tops, tops + LANES);
        if (top <= UNSEEN) {  // nothing seen so far
            std::memset(weight, 0, width * sizeof(Held));
            return;
        }
        if (top > high[r] && total[r] > 0) {
            const float less = std::exp((high[r] - top) * factor);
            total[r] *= less;
            for (int64_t i = 0; i < D; ++i) sum[r * D + i] *= less;
        }
        const float by = factor, off = top * factor;
        float mass = 0;
#pragma omp simd reduction(+ : mass)
        for (int64_t j = 0; j < width; ++j) {
            const float x = exponential(row[j] * by - off);
            mass += x;
            if constexpr (PAIRED)
                weight[j] = rounded(x);
            else
                weight[j] = x;
        }
        high[r] = top;
        total[r] += mass;
    }

    void copy(Held* to, const Stored* from) {
        if constexpr (std::is_same_v<Held, Stored>)
            std::memcpy(to, from, D * sizeof(Held));
        else
            for (int64_t i = 0; i < D; ++i) to[i] = widened(from[i]);
    }

    void multiply_keys(const Stored* key, int64_t from, int64_t n, int64_t width) {
        const int32_t* at = &keys.key[from];
        if constexpr (PAIRED) {  // [D / 2, width] pairs of channels
            auto* pairs = reinterpret_cast<uint32_t*>(k.data());
            auto* some = reinterpret_cast<uint32_t*>(weights.data());  // [LANES, D / 2]; not written yet
            for (int64_t j = 0; j < width; j += LANES) {
                for (int64_t i = 0; i < LANES; ++i)
                    std::memcpy(some + i * (D / 2), key + at[std::min(j + i, n - 1)] * c.k_strides[2], D * 2);
                for (int64_t x = 0; x < D / 2; ++x)
#pragma omp simd
                    for (int64_t i = 0; i < LANES; ++i) pairs[x * width + j + i] = some[i * (D / 2) + x];
            }
            at::native::cpublas::brgemm(R, width, D, D, width, width, false, reinterpret_cast<at::BFloat16*>(q.data()),
                                        reinterpret_cast<at::BFloat16*>(k.data()), scores.data());
        } else {
            for (int64_t j = 0; j < n; ++j) copy(&k[j * D], key + at[j] * c.k_strides[2]);
            const int M = n, N = R, K = D, ld = width;
            const float one = 1, zero = 0;
            sgemm_("T", "N", &M, &N, &K, &one, k.data(), &K, q.data(), &K, &zero, scores.data(), &ld);
        }
    }

    void add_values(const Stored* value, int64_t from, int64_t n, int64_t width) {
        const int32_t* at = &keys.key[from];
        if constexpr (PAIRED) {  // [width / 2, D] pairs of keys
            auto* pairs = reinterpret_cast<uint32_t*>(v.data());
            for (int64_t j = 0; j < width; j += 2) {
                const auto* one = value + at[std::min(j, n - 1)] * c.v_strides[2];
                const auto* two = value + at[std::min(j + 1, n - 1)] * c.v_strides[2];
#pragma omp simd
                for (int64_t x = 0; x < D; ++x) pairs[j / 2 * D + x] = one[x] | static_cast<uint32_t>(two[x]) << 16;
            }
            at::native::cpublas::brgemm(R, D, width, width, D, D, true, reinterpret_cast<at::BFloat16*>(weights.data()),
                                        reinterpret_cast<at::BFloat16*>(v.data()), sum.data());
        } else {
            for (int64_t j = 0; j < n; ++j) copy(&v[j * D], value + at[j] * c.v_strides[2]);
            const int M = D, N = R, K = n, ld = width;
            const float one = 1;
            sgemm_("N", "N", &M, &N, &K, &one, v.data(), &M, weights.data(), &ld, &one, sum.data(), &M);
        }
    }

    void write() {
        for (int64_t r = 0; r < R; ++r) {
            if (rows.target[r] < 0 || total[r] == 0) continue;
            const float share = 1 / total[r];
            Stored* to = static_cast<Stored*>(c.out) + rows.target[r] * D;
            for (int64_t i = 0; i < D; ++i)
                if constexpr (std::is_same_v<Stored, float>)
                    to[i] = sum[r * D + i] * share;
                else
                    to[i] = rounded(sum[r * D + i] * share);
            if (c.lse) c.lse[rows.target[r]] = high[r] * factor + std::log(total[r]);
        }
    }
};

template <typename Stored, bool PAIRED>
void run(const Call& c) {
    std::atomic<int64_t> next{0};
    const int64_t count = c.batch * c.tables * c.tiles;
    at::parallel_for(0, std::min<int64_t>(at::get_num_threads(), count), 1, [&](int64_t, int64_t) {
        Worker<Stored, PAIRED> worker(c);
        for (int64_t i = next++; i < count; i = next++) {  // one head after the other, whose keys then stay in a cache
            const int64_t table = i / c.tiles;
            worker.tile(table / c.tables, table % c.tables, c.tiles - 1 - i % c.tiles);
        }
        if constexpr (PAIRED) at::native::cpublas::brgemm_release();
    });
}

}  // namespace

extern "C" void attend_float32(const Call* c) { run<float, false>(*c); }

extern "C" void attend_bfloat16(const Call* c) {
    if (c->d % 2 == 0 && at::native::cpublas::could_pack(at::kBFloat16))
        run<uint16_t, true>(*c);
    else
        run<uint16_t, false>(*c);
}
