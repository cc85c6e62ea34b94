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
    float *probabilities, *step_sums, *dresidual;
    void *attended, *dscores;
    const void *gradient;
    uint8_t *gate;
} attend_job;

BB_INLINE void attend_query(const attend_job *job, size_t item, size_t head, size_t query, const int type) {
    const bb_attention_scores *s = job->s;
    const size_t keys = s->keys, row = ((item * s->heads + head) * s->queries + query) * keys;
    const size_t set = s->num_sets == 1 ? 0 : head;
    const float *residual = s->residual ? s->residual + ((item * s->num_sets + set) * s->queries + query) * keys : NULL;
    const __m512 factor = _mm512_set1_ps(s->factor), inverse_root = _mm512_set1_ps(s->inverse_root);
    float *probabilities = job->probabilities + row;

    __m512 largest = _mm512_set1_ps(-INFINITY);
    for (size_t k = 0; k < keys; k += BB_LANES) {
        const __mmask16 lanes = lanes_inside(k, keys);
        __m512 score = _mm512_mul_ps(load_operand(s->scores, row + k, type, lanes), factor);
        if (residual) score = _mm512_add_ps(score, load_floats(residual + k, lanes));
        score = _mm512_mul_ps(score, inverse_root);
        if (s->bias) score = _mm512_add_ps(score, load_floats(s->bias + item * keys + k, lanes));
        _mm512_mask_storeu_ps(probabilities + k, lanes, score);
        largest = _mm512_mask_max_ps(largest, lanes, largest, score);
    }
    const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    __m512 sum = _mm512_setzero_ps();
    for (size_t k = 0; k < keys; k += BB_LANES) {
        const __mmask16 lanes = lanes_inside(k, keys);
        /* Exactly 0 for masked keys: what lanes_exp leaves of them would be subnormal, which slows every product after it. */
        const __m512 below = _mm512_sub_ps(load_floats(probabilities + k, lanes), top);
        const __mmask16 counts = _mm512_cmp_ps_mask(below, _mm512_set1_ps(-80.0f), _CMP_GE_OQ);
        const __m512 weight = _mm512_maskz_mov_ps(counts, lanes_exp(below));
        _mm512_mask_storeu_ps(probabilities + k, lanes, weight);
        sum = _mm512_mask_add_ps(sum, lanes, sum, weight);
    }
    const __m512 inverse_sum = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(sum));
    const __m512 step = _mm512_set1_ps(s->step), half = _mm512_set1_ps(s->step * 0.5f);
    for (size_t k = 0; k < keys; k += BB_LANES) {
        const __mmask16 lanes = lanes_inside(k, keys);
        const __m512 p = _mm512_mul_ps(load_floats(probabilities + k, lanes), inverse_sum);
        _mm512_mask_storeu_ps(probabilities + k, lanes, p);
        const __mmask16 kept = s->random ? kept_lanes(s->random + row + k, s->limit, lanes) : lanes;
        const __mmask16 high = _mm512_cmp_ps_mask(p, half, _CMP_GT_OQ) & kept;
        store_operand(job->attended, row + k, type, lanes, _mm512_maskz_mov_ps(high, _mm512_set1_ps(1.0f)));
        store_flags(job->gate + row + k, lanes, _mm512_cmp_ps_mask(p, step, _CMP_LE_OQ) & kept);
    }
}

static void attend_item(void *context, size_t worker, size_t index) {
    (void)worker;
    const attend_job *job = context;
    const size_t item = index / job->s->heads, head = index % job->s->heads;
    for (size_t query = 0; query < job->s->queries; query++)
        if (job->s->type == BB_BFLOAT16)
            attend_query(job, item, head, query, BB_BFLOAT16);
        else
            attend_query(job, item, head, query, BB_FLOAT32);
}

void bb_training_attend(bb_pool *pool, const bb_attention_scores *scores, float *probabilities, void *attended, uint8_t *gate) {
    attend_job job = {.s = scores, .probabilities = probabilities, .attended = attended, .gate = gate};
    bb_pool_run(pool, scores->batch * scores->heads, attend_item, &job);
}

BB_INLINE void attend_query_backward(const attend_job *job, size_t item, size_t head, size_t query, const int type) {
    const bb_attention_scores *s = job->s;
    const size_t keys = s->keys, row = ((item * s->heads + head) * s->queries + query) * keys;
    const size_t set = s->num_sets == 1 ? 0 : head;
    const float *probabilities = job->probabilities + row;
    const __m512 inverse_step = _mm512_set1_ps(1.0f / s->step);

    __m512 dot = _mm512_setzero_ps();
    for (size_t k = 0; k < keys; k += BB_LANES) {
        const __mmask16 lanes = lanes_inside(k, keys), gate = load_flags(job->gate + row + k, lanes);
        const __m512 dp = _mm512_maskz_mul_ps(gate, load_operand(job->gradient, row + k, type, lanes), inverse_step);
        dot = _mm512_fmadd_ps(dp, load_floats(probabilities + k, lanes), dot);
    }
    const float total = _mm512_reduce_add_ps(dot);
    job->step_sums[item] -= total / s->step;

    const __m512 mean = _mm512_set1_ps(total), factor = _mm512_set1_ps(s->factor), inverse_root = _mm512_set1_ps(s->inverse_root);
    float *dresidual = job->dresidual ? job->dresidual + ((item * s->num_sets + set) * s->queries + query) * keys : NULL;
    for (size_t k = 0; k < keys; k += BB_LANES) {
        const __mmask16 lanes = lanes_inside(k, keys), gate = load_flags(job->gate + row + k, lanes);
        const __m512 dp = _mm512_maskz_mul_ps(gate, load_operand(job->gradient, row + k, type, lanes), inverse_step);
        __m512 ds = _mm512_mul_ps(load_floats(probabilities + k, lanes), _mm512_sub_ps(dp, mean));
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
                attend_query_backward(job, item, head, query, BB_BFLOAT16);
            else
                attend_query_backward(job, item, head, query, BB_FLOAT32);
}

void bb_training_attend_backward(bb_pool *pool, const bb_attention_scores *scores, const void *gradient, const float *probabilities,
                                 const uint8_t *gate, void *dscores, float *dresidual, float *dstep) {
    attend_job job = {.s = scores, .gradient = gradient, .probabilities = (float *)probabilities, .gate = (uint8_t *)gate,
                      .dscores = dscores, .dresidual = dresidual};
    job.step_sums = malloc(scores->batch * sizeof *job.step_sums);
    if (!job.step_sums) abort();
    bb_pool_run(pool, scores->batch, attend_item_backward, &job);
    double sum = 0;
    for (size_t item = 0; item < scores->batch; item++) sum += job.step_sums[item];
    *dstep = (float)sum;
    free(job.step_sums);
}

BB_TARGET_END
#endif
