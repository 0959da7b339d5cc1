// What of libllm_datadist is probed: a call that moves memory and takes the microseconds that it is given.
#include <time.h>

#define TRANSFER_SYNC                                                                                   \
    "_ZN4adxl10AdxlEngine12TransferSyncERKN2ge12AscendStringENS_10TransferOpERKSt6vectorINS_14Transfer" \
    "OpDescESaIS7_EEi"

__attribute__((visibility("default"), noinline)) unsigned transfer(long us) __asm__(TRANSFER_SYNC);
unsigned transfer(long us)
{
    struct timespec t = {0, us * 1000};
    nanosleep(&t, 0);
    return 0;
}
