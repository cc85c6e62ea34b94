/* From scores to attended bits and back: residual, softmax, threshold and dropout in one visit of each row. */
#if defined(__x86_64__)
#include <math.h>
#include <string.h>

#include "training.h"

#include "../src/target.h"
#include "rows.h"

BB_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,fma")
#include "vectors.h"

typedef struct {
    const bb_attention_scores *s;
    float *t, *dresidual;
    double *step_sums;
    void *attended, *dscores;
    const void *gradient;
    uint8_t *gate;
} attend_job;

/* t of sixteen keys, before softmax. */
BB_INLINE __m512 weighed_score(const bb_attention_scores *s, size_t item, const float *residual, size_t row, size_t k, const int type, __mmask16 lanes) {
    __m512 score = _mm512_mul_ps(load_operand(s->scores, row + k, type, lanes), _mm512_set1_ps(s->factor));
    if (residual) score = _mm512_add_ps(score, load_floats(residual + k, lanes));
    score = _mm512_mul_ps(score, _mm512_set1_ps(s->inverse_root));
    return s->bias ? _mm512_add_ps(score, load_floats(s->bias + item * s->keys + k, lanes)) : score;
}

/* t (keys) of a query, in place, to its softmax but for the division; returns what to multiply by. */
BB_INLINE __m512 exponentials(float *t, size_t keys, __m512 largest) {
    const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    __m512 sum = _mm512_setzero_ps();
    for (size_t k = 0; k < keys; k += BB_LANES) {
        const __mmask16 lanes = lanes_inside(k, keys);
        /* Exactly 0 for masked keys: what lanes_exp leaves of them would be subnormal, which slows every product after it. */
        const __m512 below = _mm512_sub_ps(load_floats(t + k, lanes), top);
        const __mmask16 counts = _mm512_cmp_ps_mask(below, _mm512_set1_ps(-80.0f), _CMP_GE_OQ);
        const __m512 weight = _mm512_maskz_mov_ps(counts, lanes_exp(below));
        _mm512_mask_storeu_ps(t + k, lanes, weight);
        sum = _mm512_mask_add_ps(sum, lanes, sum, weight);
    }
    return _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(sum));
}

/* Bi-Attention's kinds binarize the scores, the others probabilities. */
BB_INLINE int has_softmax(int kind) { return kind == BB_UNSIGNED || kind == BB_LEVELS; }

BB_INLINE void attend_query(const attend_job *job, size_t item, size_t head, size_t query, const int type, const int kind) {
    const bb_attention_scores *s = job->s;
    const size_t keys = s->keys, row = ((item * s->heads + head) * s->queries + query) * keys;
    const size_t set = s->num_sets == 1 ? 0 : head;
    const float *residual = s->residual ? s->residual + ((item * s->num_sets + set) * s->queries + query) * keys : NULL;
    float *t = job->t + row;

    __m512 largest = _mm512_set1_ps(-INFINITY);
    for (size_t k = 0; k < keys; k += BB_LANES) {
        const __mmask16 lanes = lanes_inside(k, keys);
        const __m512 score = weighed_score(s, item, residual, row, k, type, lanes);
        _mm512_mask_storeu_ps(t + k, lanes, score);
        largest = _mm512_mask_max_ps(largest, lanes, largest, score);
    }
    const __m512 inverse_sum = has_softmax(kind) ? exponentials(t, keys, largest) : largest;
    const code_limits limits = limits_of(s->step, 0.0f, s->highest);
    for (size_t k = 0; k < keys; k += BB_LANES) {
        const __mmask16 lanes = lanes_inside(k, keys);
        const __mmask16 kept = s->random ? kept_lanes(s->random + row + k, s->limit, lanes) : lanes;
        __m512 value = load_floats(t + k, lanes);
        __mmask16 inside;
        if (has_softmax(kind)) {
            value = _mm512_mul_ps(value, inverse_sum);
            _mm512_mask_storeu_ps(t + k, lanes, value);
        }
        const __m512 code = code_of(value, limits, kind, &inside);
        store_operand(job->attended, row + k, type, lanes, _mm512_maskz_mov_ps(kept, code));
        store_flags(job->gate + row + k, lanes, inside & kept);
    }
}

/* Calls rows(job, item, head, query, type, kind) with constants for the last two. */
#define WITH_KIND(rows, type)                                                                     \
    do {                                                                                          \
        switch (job->s->kind) {                                                                   \
            case BB_UNSIGNED: rows(job, item, head, query, type, BB_UNSIGNED); break;             \
            case BB_LEVELS: rows(job, item, head, query, type, BB_LEVELS); break;                 \
            case BB_BOOL: rows(job, item, head, query, type, BB_BOOL); break;                     \
            default: rows(job, item, head, query, type, BB_STRICT_BOOL);                          \
        }                                                                                         \
    } while (0)

static void attend_item(void *context, size_t worker, size_t index) {
    (void)worker;
    const attend_job *job = context;
    const size_t item = index / job->s->heads, head = index % job->s->heads;
    for (size_t query = 0; query < job->s->queries; query++)
        if (job->s->type == BB_BFLOAT16)
            WITH_KIND(attend_query, BB_BFLOAT16);
        else
            WITH_KIND(attend_query, BB_FLOAT32);
}

void bb_training_attend(bb_pool *pool, const bb_attention_scores *scores, float *t, void *attended, uint8_t *gate) {
    attend_job job = {.s = scores, .t = t, .attended = attended, .gate = gate};
    bb_pool_run(pool, scores->batch * scores->heads, attend_item, &job);
}

BB_INLINE void attend_query_backward(const attend_job *job, size_t item, size_t head, size_t query, const int type, const int kind) {
    const bb_attention_scores *s = job->s;
    const size_t keys = s->keys, row = ((item * s->heads + head) * s->queries + query) * keys;
    const size_t set = s->num_sets == 1 ? 0 : head;
    const float *t = job->t + row;
    const __m512 inverse_step = _mm512_set1_ps(1.0f / s->step);

    float total = 0;
    if (has_softmax(kind)) {
        __m512 dot = _mm512_setzero_ps();
        for (size_t k = 0; k < keys; k += BB_LANES) {
            const __mmask16 lanes = lanes_inside(k, keys), gate = load_flags(job->gate + row + k, lanes);
            const __m512 dt = _mm512_maskz_mul_ps(gate, load_operand(job->gradient, row + k, type, lanes), inverse_step);
            dot = _mm512_fmadd_ps(dt, load_floats(t + k, lanes), dot);
        }
        total = _mm512_reduce_add_ps(dot);
        job->step_sums[item] -= (double)total / s->step;
    }

    const __m512 mean = _mm512_set1_ps(total), factor = _mm512_set1_ps(s->factor), inverse_root = _mm512_set1_ps(s->inverse_root);
    float *dresidual = job->dresidual ? job->dresidual + ((item * s->num_sets + set) * s->queries + query) * keys : NULL;
    for (size_t k = 0; k < keys; k += BB_LANES) {
        const __mmask16 lanes = lanes_inside(k, keys), gate = load_flags(job->gate + row + k, lanes);
        const __m512 dt = _mm512_maskz_mul_ps(gate, load_operand(job->gradient, row + k, type, lanes), inverse_step);
        __m512 ds = has_softmax(kind) ? _mm512_mul_ps(load_floats(t + k, lanes), _mm512_sub_ps(dt, mean)) : dt;
        ds = _mm512_mul_ps(ds, inverse_root);
        if (dresidual) {
            const __m512 sum = head && s->num_sets == 1 ? _mm512_add_ps(load_floats(dresidual + k, lanes), ds) : ds;
            _mm512_mask_storeu_ps(dresidual + k, lanes, sum);
        }
        store_operand(job->dscores, row + k, type, lanes, _mm512_mul_ps(ds, factor));
    }
}

/* One sequence a task: its heads add to the same residual, in order. */
static void attend_item_backward(void *context, size_t worker, size_t item) {
    (void)worker;
    const attend_job *job = context;
    job->step_sums[item] = 0;
    for (size_t head = 0; head < job->s->heads; head++)
        for (size_t query = 0; query < job->s->queries; query++)
            if (job->s->type == BB_BFLOAT16)
                WITH_KIND(attend_query_backward, BB_BFLOAT16);
            else
                WITH_KIND(attend_query_backward, BB_FLOAT32);
}

void bb_training_attend_backward(bb_pool *pool, const bb_attention_scores *scores, const void *gradient, const float *t,
                                 const uint8_t *gate, void *dscores, float *dresidual, float *dstep) {
    attend_job job = {.s = scores, .gradient = gradient, .t = (float *)t, .gate = (uint8_t *)gate,
                      .dscores = dscores, .dresidual = dresidual};
    job.step_sums = malloc(scores->batch * sizeof *job.step_sums);
    if (!job.step_sums) abort();
    bb_pool_run(pool, scores->batch, attend_item_backward, &job);
    *dstep = add_up(job.step_sums, scores->batch);
    free(job.step_sums);
}

BB_TARGET_END
#endif
