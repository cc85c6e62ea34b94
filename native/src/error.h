/* Failures: a sentence a thread. */
#ifndef BB_ERROR_H
#define BB_ERROR_H

/* Formats the calling thread's error sentence; always returns -1. */
int bb_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
