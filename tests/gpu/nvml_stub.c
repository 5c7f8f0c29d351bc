/* The driver's library as far as the server asks it. NVML_GPUS says how many there are (at most 2), and NVML_FAIL,
   such as "nvmlDeviceGetName=3,nvmlInitWithFlags=9", which calls fail with which code (GPU 1's only, with "@1"). */
#include <stdlib.h>
#include <string.h>

typedef struct { int index; } device;
typedef struct { unsigned long long total, free, used; } memory;
typedef struct { unsigned int gpu, memory; } utilization;

static device devices[2] = {{0}, {1}};

static int failure(const char *name, const device *which) {
    const char *at = getenv("NVML_FAIL");
    size_t length = strlen(name);
    for (; at && *at; at = strchr(at, ',') ? strchr(at, ',') + 1 : "") {
        if (strncmp(at, name, length) || (at[length] != '=' && at[length] != '@')) continue;
        if (at[length] == '@' && (!which || which->index != at[length + 1] - '0')) continue;
        return atoi(strchr(at, '=') + 1);
    }
    return 0;
}

#define FAIL(which) do { int code = failure(__func__, which); if (code) return code; } while (0)

int nvmlInitWithFlags(unsigned int flags) { FAIL(NULL); return 0; }
int nvmlShutdown(void) { FAIL(NULL); return 0; }
const char *nvmlErrorString(int code) { return "an error of the stub"; }

int nvmlDeviceGetCount_v2(unsigned int *count) {
    FAIL(NULL);
    *count = atoi(getenv("NVML_GPUS") ? getenv("NVML_GPUS") : "0");
    return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, device **handle) {
    FAIL(&devices[index]);
    *handle = &devices[index];
    return 0;
}

int nvmlDeviceGetName(device *which, char *name, unsigned int length) {
    FAIL(which);
    strncpy(name, which->index ? "NVIDIA L4" : "NVIDIA GeForce RTX 2070", length);
    return 0;
}

int nvmlDeviceGetMemoryInfo(device *which, memory *info) {
    FAIL(which);
    info->total = (which->index ? 23034ull : 8192ull) << 20;
    info->used = (which->index ? 34ull : 192ull) << 20;
    info->free = info->total - info->used;
    return 0;
}

int nvmlDeviceGetCudaComputeCapability(device *which, int *major, int *minor) {
    FAIL(which);
    *major = which->index ? 8 : 7;
    *minor = which->index ? 9 : 5;
    return 0;
}

#ifndef WITHOUT_UUID
int nvmlDeviceGetUUID(device *which, char *uuid, unsigned int length) {
    FAIL(which);
    strncpy(uuid, which->index ? "GPU-bbbb" : "GPU-aaaa", length);
    return 0;
}
#endif

int nvmlDeviceGetUtilizationRates(device *which, utilization *rates) {
    FAIL(which);
    rates->gpu = which->index ? 30 : 10;
    rates->memory = 0;
    return 0;
}
