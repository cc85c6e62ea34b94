/* Whether AMX may be used; see amx.c. */
#ifndef BB_AMX_H
#define BB_AMX_H

#include <stdbool.h>

/* Asks the processor for the instructions and the operating system for permission to keep tiles. */
bool bb_amx_permitted(void);

#endif
