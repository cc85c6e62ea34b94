/* A pool of threads that share the indices of a loop. */
#ifndef BB_POOL_H
#define BB_POOL_H

#include <stddef.h>

typedef struct bb_pool bb_pool;

/* `worker` is 0 to num_threads - 1 and tells whose scratch memory to use. */
typedef void bb_task(void *context, size_t worker, size_t index);

/* NULL when threads cannot be made. One thread means the caller's own: nothing is started. */
bb_pool *bb_pool_create(size_t num_threads);
void bb_pool_free(bb_pool *pool);
size_t bb_pool_size(const bb_pool *pool);

/* Runs task(context, worker, 0 ... count - 1), each index once, in any order; returns when all are done. A child that was
 * forked between two runs has no threads but its own, which does all. */
void bb_pool_run(bb_pool *pool, size_t count, bb_task *task, void *context);

#endif
