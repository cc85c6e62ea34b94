/* BB_TARGET_BEGIN("features") ... BB_TARGET_END: functions between them are compiled for those features.
 *
 * The rest of the library is compiled for the baseline of the architecture, so one binary runs on every machine of
 * it; dispatch.c calls into a file only after the processor said that it has the features.
 */
#ifndef BB_TARGET_H
#define BB_TARGET_H

#define BB_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define BB_TARGET_BEGIN(features) BB_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define BB_TARGET_END _Pragma("clang attribute pop")
#else
#define BB_TARGET_BEGIN(features) _Pragma("GCC push_options") BB_PRAGMA(GCC target(features))
#define BB_TARGET_END _Pragma("GCC pop_options")
#endif

#endif
