#define _POSIX_C_SOURCE 200809L
#include "pool.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

typedef struct {
    bb_pool *pool;
    size_t index;
    pthread_t thread;
} worker;

struct bb_pool {
    size_t num_threads;
    pid_t process; /* whose threads they are: a forked child has none of them */
    worker *workers; /* worker 0 is the caller of bb_pool_run and has no thread */
    pthread_mutex_t mutex;
    pthread_cond_t start, done;
    unsigned generation; /* of loops; a change wakes the workers */
    size_t num_busy;
    bool stopping;
    bb_task *task;
    void *context;
    size_t count, next;
};

static void share_loop(bb_pool *pool, size_t index_of_worker) {
    for (;;) {
        size_t index = __atomic_fetch_add(&pool->next, 1, __ATOMIC_RELAXED);
        if (index >= pool->count) return;
        pool->task(pool->context, index_of_worker, index);
    }
}

static void *work(void *argument) {
    worker *self = argument;
    bb_pool *pool = self->pool;
    unsigned seen = 0;
    for (;;) {
        pthread_mutex_lock(&pool->mutex);
        while (pool->generation == seen && !pool->stopping) pthread_cond_wait(&pool->start, &pool->mutex);
        seen = pool->generation;
        bool stopping = pool->stopping;
        pthread_mutex_unlock(&pool->mutex);
        if (stopping) return NULL;
        share_loop(pool, self->index);
        pthread_mutex_lock(&pool->mutex);
        if (--pool->num_busy == 0) pthread_cond_signal(&pool->done);
        pthread_mutex_unlock(&pool->mutex);
    }
}

bb_pool *bb_pool_create(size_t num_threads) {
    bb_pool *pool = calloc(1, sizeof *pool);
    if (!pool) return NULL;
    pool->workers = calloc(num_threads, sizeof *pool->workers);
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->start, NULL);
    pthread_cond_init(&pool->done, NULL);
    pool->num_threads = 1;
    pool->process = getpid();
    for (size_t index = 1; pool->workers && index < num_threads; index++) {
        pool->workers[index] = (worker){.pool = pool, .index = index};
        if (pthread_create(&pool->workers[index].thread, NULL, work, &pool->workers[index])) break;
        pool->num_threads = index + 1;
    }
    if (!pool->workers || pool->num_threads < num_threads) {
        bb_pool_free(pool);
        return NULL;
    }
    return pool;
}

void bb_pool_free(bb_pool *pool) {
    if (!pool) return;
    if (pool->process == getpid()) {
        pthread_mutex_lock(&pool->mutex);
        pool->stopping = true;
        pthread_cond_broadcast(&pool->start);
        pthread_mutex_unlock(&pool->mutex);
        for (size_t index = 1; index < pool->num_threads; index++) pthread_join(pool->workers[index].thread, NULL);
        pthread_cond_destroy(&pool->done);
        pthread_cond_destroy(&pool->start);
        pthread_mutex_destroy(&pool->mutex);
    }
    free(pool->workers);
    free(pool);
}

size_t bb_pool_size(const bb_pool *pool) { return pool->num_threads; }

void bb_pool_run(bb_pool *pool, size_t count, bb_task *task, void *context) {
    if (pool->num_threads == 1 || count == 1 || pool->process != getpid()) {
        for (size_t index = 0; index < count; index++) task(context, 0, index);
        return;
    }
    pthread_mutex_lock(&pool->mutex);
    pool->task = task;
    pool->context = context;
    pool->count = count;
    pool->next = 0;
    pool->num_busy = pool->num_threads - 1;
    pool->generation++;
    pthread_cond_broadcast(&pool->start);
    pthread_mutex_unlock(&pool->mutex);
    share_loop(pool, 0);
    pthread_mutex_lock(&pool->mutex);
    while (pool->num_busy) pthread_cond_wait(&pool->done, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
}
