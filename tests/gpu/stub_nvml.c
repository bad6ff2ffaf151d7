/* A libnvidia-ml.so.1 without a driver behind it. Before each call it reads the file named by STUB_NVML: one
 * "key gpu value" per line, for example "used 0 4096" (MiB); a test edits the file while a monitor runs.
 * A field that the file does not name is NVML_ERROR_NOT_SUPPORTED, as on a card that lacks it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15 };
enum { MIB = 1 << 20, MIG_HANDLE = 1000 };

typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned long long total, free, used; } memory_v1;
typedef struct { unsigned int gpu, memory; } utilization;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gpu_instance, compute_instance; } process;

static int find(const char *key, long gpu, char *text) {
    char line[256], name[64], value[128];
    long number;
    FILE *file = fopen(getenv("STUB_NVML"), "r");
    int found = 0;
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "%63s %ld %127[^\n]", name, &number, value) == 3 && number == gpu && !strcmp(name, key)) {
            strcpy(text, value);
            found = 1;
        }
    if (file) fclose(file);
    return found;
}

static long number(const char *key, long gpu, long otherwise) {
    char text[128];
    return find(key, gpu, text) ? atol(text) : otherwise;
}

/* Every call on a GPU passes here: it may hang, be lost or be forbidden. */
static int state(long gpu) {
    long hang_s = number("hang", gpu, 0);
    if (hang_s) sleep(hang_s);
    return number("error", gpu, SUCCESS);
}

static int field(const char *key, void *handle, unsigned int *out) {
    long gpu = (long)handle - 1, value = number(key, gpu, -1);
    int status = state(gpu);
    if (status) return status;
    if (value < 0) return NOT_SUPPORTED;
    *out = value;
    return SUCCESS;
}

static int text_field(const char *key, void *handle, char *out, unsigned int size) {
    char text[128];
    int status = state((long)handle - 1);
    if (status) return status;
    if (!find(key, (long)handle - 1, text)) return NOT_SUPPORTED;
    snprintf(out, size, "%s", text);
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    sleep(number("init_hang", -1, 0));
    return number("init", -1, SUCCESS);
}
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { (void)code; return "stub error"; }
int nvmlSystemGetDriverVersion(char *out, unsigned int size) { snprintf(out, size, "570.86.15"); return SUCCESS; }
int nvmlSystemGetCudaDriverVersion(int *out) { *out = number("cuda", -1, 12080); return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned int *out) { *out = number("gpus", -1, 1); return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **out) {
    *out = (void *)((long)index + 1);
    return state(index);
}
int nvmlDeviceGetName(void *h, char *out, unsigned int size) { return text_field("name", h, out, size); }
int nvmlDeviceGetUUID(void *h, char *out, unsigned int size) { return text_field("uuid", h, out, size); }

int nvmlDeviceGetMemoryInfo_v2(void *h, memory_v2 *out) {
    unsigned int total, used;
    int status = field("total", h, &total);
    if (!status) status = field("used", h, &used);
    if (status) return status;
    out->total = (unsigned long long)total * MIB;
    out->used = (unsigned long long)used * MIB;
    out->reserved = (unsigned long long)number("reserved", (long)h - 1, 0) * MIB;
    out->free = out->total - out->used - out->reserved;
    return SUCCESS;
}
int nvmlDeviceGetMemoryInfo(void *h, memory_v1 *out) {
    memory_v2 both;
    int status = nvmlDeviceGetMemoryInfo_v2(h, &both);
    out->total = both.total, out->used = both.used + both.reserved, out->free = both.free;
    return status;
}
int nvmlDeviceGetUtilizationRates(void *h, utilization *out) { return field("use", h, &out->gpu); }
int nvmlDeviceGetTemperature(void *h, int sensor, unsigned int *out) { (void)sensor; return field("celsius", h, out); }
int nvmlDeviceGetPowerUsage(void *h, unsigned int *out) { return field("milliwatts", h, out); }
int nvmlDeviceGetEnforcedPowerLimit(void *h, unsigned int *out) { return field("limit", h, out); }
int nvmlDeviceGetClockInfo(void *h, int kind, unsigned int *out) { (void)kind; return field("clock", h, out); }
int nvmlDeviceGetMaxClockInfo(void *h, int kind, unsigned int *out) { (void)kind; return field("clock_max", h, out); }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *h, unsigned long long *out) {
    unsigned int mask;
    int status = field("throttle", h, &mask);
    *out = mask;
    return status;
}
int nvmlDeviceGetCudaComputeCapability(void *h, int *major, int *minor) {
    unsigned int both;
    int status = field("capability", h, &both);
    *major = both / 10, *minor = both % 10;
    return status;
}

static int processes(const char *key, void *h, unsigned int *count, process *out) {
    char text[128];
    int status = state((long)h - 1);
    if (status) return status;
    if (!find(key, (long)h - 1, text)) { *count = 0; return SUCCESS; }
    if (!out || *count < 1) { *count = 1; return INSUFFICIENT_SIZE; }
    unsigned int pid;
    long mib;
    sscanf(text, "%u %ld", &pid, &mib);
    *out = (process){pid, mib < 0 ? ~0ULL : (unsigned long long)mib * MIB, ~0U, ~0U};
    *count = 1;
    return SUCCESS;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *h, unsigned int *n, process *out) { return processes("compute", h, n, out); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *h, unsigned int *n, process *out) { return processes("graphics", h, n, out); }

int nvmlDeviceGetMigMode(void *h, unsigned int *current, unsigned int *pending) {
    int status = field("mig", h, current);
    *pending = *current;
    return status;
}
int nvmlDeviceGetMaxMigDeviceCount(void *h, unsigned int *out) { (void)h; *out = 7; return SUCCESS; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *h, unsigned int index, void **out) {
    (void)h;
    *out = (void *)(long)(MIG_HANDLE + index + 1);
    return number("total", MIG_HANDLE + index, -1) < 0 ? NOT_FOUND : SUCCESS;
}
