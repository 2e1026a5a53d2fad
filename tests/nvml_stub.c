/* A libnvidia-ml for machines without a GPU. What it says stands in the file that NVML_STUB names, and is read at every
 * call: lines such as "0.power 250000", where 0 is the number of a GPU and 0/1 that of a MIG device in it. A line such
 * as "0.power !15" makes the call fail with error 15, and what no line tells of is not supported. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { int gpu, part; } Device;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } Memory2;
typedef struct { unsigned int gpu, memory; } Utilization;
typedef struct { unsigned int pid; unsigned long long used; unsigned int instance, compute; } Process;
typedef struct { Device *device; unsigned long long type, data; unsigned int instance, compute; } Event;

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NO_SIZE = 7, TIMEOUT = 10 };
static Device devices[16][17];

static int look(const char *key, char *value) {
    char line[512], name[256];
    FILE *file = fopen(getenv("NVML_STUB"), "r");
    int result = NOT_SUPPORTED;
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "%255s %255[^\n]", name, value) == 2 && strcmp(name, key) == 0) {
            result = value[0] == '!' ? atoi(value + 1) : SUCCESS;
            break;
        }
    if (file) fclose(file);
    return result;
}

static int ask(const Device *device, const char *what, char *value) {
    char key[256];
    if (device->part) snprintf(key, sizeof key, "%d/%d.%s", device->gpu, device->part - 1, what);
    else snprintf(key, sizeof key, "%d.%s", device->gpu, what);
    return look(key, value);
}

static int number(const Device *device, const char *what, unsigned long long *out) {
    char value[256];
    int result = ask(device, what, value);
    if (result == SUCCESS) *out = strtoull(value, NULL, 10);
    return result;
}

static int whole(const Device *device, const char *what, unsigned int *out) {
    unsigned long long value;
    int result = number(device, what, &value);
    if (result == SUCCESS) *out = (unsigned int)value;
    return result;
}

static int text(const Device *device, const char *what, char *out, unsigned int size) {
    char value[256];
    int result = ask(device, what, value);
    if (result == SUCCESS) snprintf(out, size, "%s", value);
    return result;
}

int nvmlInitWithFlags(unsigned int flags) { char value[256]; (void)flags; int r = look("init", value); return r == NOT_SUPPORTED ? SUCCESS : r; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int result) { return result == NOT_SUPPORTED ? "Not Supported" : "Failed"; }
int nvmlDeviceGetCount_v2(unsigned int *out) { char value[256]; *out = look("count", value) == SUCCESS ? atoi(value) : 0; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, Device **out) { devices[index][0].gpu = index; *out = &devices[index][0]; return SUCCESS; }
int nvmlDeviceGetUUID(Device *device, char *out, unsigned int size) { return text(device, "uuid", out, size); }
int nvmlDeviceGetName(Device *device, char *out, unsigned int size) { return text(device, "name", out, size); }
int nvmlDeviceGetPowerUsage(Device *device, unsigned int *out) { return whole(device, "power", out); }
int nvmlDeviceGetTotalEnergyConsumption(Device *device, unsigned long long *out) { return number(device, "energy", out); }
int nvmlDeviceGetTemperature(Device *device, unsigned int sensor, unsigned int *out) { return sensor ? NOT_SUPPORTED : whole(device, "temperature", out); }
int nvmlDeviceGetCurrentClocksThrottleReasons(Device *device, unsigned long long *out) { return number(device, "reasons", out); }
int nvmlDeviceGetCurrentClocksEventReasons(Device *device, unsigned long long *out) { return number(device, "reasons", out); }
int nvmlDeviceGetTotalEccErrors(Device *device, unsigned int kind, unsigned int since, unsigned long long *out) { return since ? NOT_SUPPORTED : number(device, kind ? "uncorrected" : "corrected", out); }
int nvmlDeviceGetMaxMigDeviceCount(Device *device, unsigned int *out) { return whole(device, "parts", out); }
int nvmlDeviceGetMigMode(Device *device, unsigned int *now, unsigned int *later) { *later = 0; return whole(device, "mig", now); }

int nvmlDeviceGetMigDeviceHandleByIndex(Device *device, unsigned int index, Device **out) {
    char value[256];
    Device *part = &devices[device->gpu][index + 1];
    part->gpu = device->gpu;
    part->part = index + 1;
    *out = part;
    return ask(part, "uuid", value);
}

int nvmlDeviceGetMemoryInfo(Device *device, Memory *out) {
    int result = number(device, "memory", &out->total);
    if (result == SUCCESS) result = number(device, "used", &out->used);
    out->free = out->total - out->used;
    return result;
}

int nvmlDeviceGetMemoryInfo_v2(Device *device, Memory2 *out) {
    Memory older = {0, 0, 0};
    int result = number(device, "reserved", &out->reserved);
    if (result == SUCCESS) result = nvmlDeviceGetMemoryInfo(device, &older);
    out->total = older.total, out->used = older.used - out->reserved, out->free = older.free;
    return result;
}

int nvmlDeviceGetUtilizationRates(Device *device, Utilization *out) {
    out->memory = 0;
    return whole(device, "utilization", &out->gpu);
}

int nvmlDeviceGetComputeRunningProcesses_v3(Device *device, unsigned int *count, Process *out) {
    char value[256];
    unsigned int found = 0;
    int result = ask(device, "pids", value);
    if (result != SUCCESS) return result;
    for (char *each = strtok(value, ","); each; each = strtok(NULL, ",")) {
        if (out && found < *count) out[found] = (Process){(unsigned int)atoi(each), 1, 0, 0};
        found++;
    }
    *count = found;
    return found && !out ? NO_SIZE : SUCCESS;
}

int nvmlEventSetCreate(void **out) { static int set; *out = &set; return SUCCESS; }
int nvmlDeviceRegisterEvents(Device *device, unsigned long long types, void *set) { (void)device; (void)types; (void)set; return SUCCESS; }

/* Each number that stands in the line "xids" is told of once, of GPU 0. */
int nvmlEventSetWait_v2(void *set, Event *out, unsigned int timeout) {
    static int told;
    char value[256];
    int at = 0;
    (void)set; (void)timeout;
    if (look("xids", value) != SUCCESS) return TIMEOUT;
    for (char *each = strtok(value, ","); each; each = strtok(NULL, ","))
        if (at++ == told) {
            *out = (Event){&devices[0][0], 8, strtoull(each, NULL, 10), 0, 0};
            told++;
            return SUCCESS;
        }
    return TIMEOUT;
}
