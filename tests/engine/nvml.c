/* NVML's C functions as far as pynvml is asked for them here, over a world that a text file describes.
 *
 * FAKE_NVML_WORLD names the file. It is read again whenever it was replaced, so that a test can change the world while a program looks at it:
 *
 *     fail nvmlInitWithFlags 18      a function that fails with that code, for all GPUs
 *     gpu GPU-8c6c...                begins a GPU; `mig MIG-...` a part of one, which has no number and is found by its UUID only
 *     name NVIDIA H100               and what it tells, in bytes, percent, degrees, milliwatts
 *     memory 85899345920 1073741824  total, used
 *     compute 4711 1048576           a process that computes on it, -1 where the driver does not tell how much it holds
 *     graphics 4711 1048576          one that draws on it
 *     use 37
 *     temperature 61
 *     power 123456
 *     limit 300000
 *     fail nvmlDeviceGetName 4       a function that fails for this GPU
 *     moves                          1 MiB more is in use whenever it is asked for its memory
 *     lost                           it has fallen off the bus: all functions fail
 *
 * As in the real one, cards are counted when it is initialised; a card that is gone since has its number and is lost.
 * FAKE_NVML_CALLS names a file to which each call's name is written. Compiled with -DPROCESSES=1 or 2 it is a driver that has no later form of the questions about processes.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#ifndef PROCESSES
#define PROCESSES 3
#endif

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15 };
enum { MOST_GPUS = 16, MOST_PROCESSES = 64, MOST_FAILURES = 32 };

typedef struct { char function[64]; int code; } Failure;
typedef struct { unsigned pid; unsigned long long used; } Held;
typedef struct {
    char uuid[96], name[96];
    int is_mig, is_lost, moves, failures, computes, graphics;
    unsigned long long total, used;
    unsigned use, temperature, power, limit;
    Failure failure[MOST_FAILURES];
    Held compute[MOST_PROCESSES], graphic[MOST_PROCESSES];
} Gpu;
typedef struct { char uuid[96]; } Handle;

static Gpu gpus[MOST_GPUS];
static int gpu_count, failures, initialised, is_known;
static Failure failure[MOST_FAILURES];
static struct stat known;
static Handle handles[256];  /* a UUID has one handle for as long as the library is loaded */
static int handle_count;
static Handle *counted[MOST_GPUS];
static int counted_count;

static void read_world(void) {
    const char *path = getenv("FAKE_NVML_WORLD");
    struct stat now;
    if (!path || stat(path, &now) || (is_known && now.st_ino == known.st_ino && now.st_mtim.tv_nsec == known.st_mtim.tv_nsec && now.st_mtim.tv_sec == known.st_mtim.tv_sec)) return;
    FILE *file = fopen(path, "r");
    if (!file) return;
    known = now;
    is_known = 1;
    memset(gpus, 0, sizeof gpus);
    gpu_count = failures = 0;
    char line[256], word[64], text[96], function[64];
    int code;
    while (fgets(line, sizeof line, file)) {
        Gpu *gpu = gpu_count ? &gpus[gpu_count - 1] : NULL;
        Held held;
        if (sscanf(line, "fail %63s %d", function, &code) == 2) {
            Failure *new = gpu ? &gpu->failure[gpu->failures++] : &failure[failures++];
            strcpy(new->function, function);
            new->code = code;
        } else if (sscanf(line, "%63s", word) != 1) {
            continue;
        } else if ((!strcmp(word, "gpu") || !strcmp(word, "mig")) && sscanf(line, "%*s %95s", text) == 1) {
            gpu = &gpus[gpu_count++];
            strcpy(gpu->uuid, text);
            gpu->is_mig = word[0] == 'm';
        } else if (!gpu) {
            continue;
        } else if (!strcmp(word, "lost")) {
            gpu->is_lost = 1;
        } else if (!strcmp(word, "moves")) {
            gpu->moves = 1;
        } else if (sscanf(line, "compute %u %lld", &held.pid, (long long *)&held.used) == 2) {
            gpu->compute[gpu->computes++] = held;
        } else if (sscanf(line, "graphics %u %lld", &held.pid, (long long *)&held.used) == 2) {
            gpu->graphic[gpu->graphics++] = held;
        } else {
            sscanf(line, "name %95[^\n]", gpu->name);
            sscanf(line, "memory %llu %llu", &gpu->total, &gpu->used);
            sscanf(line, "use %u", &gpu->use);
            sscanf(line, "temperature %u", &gpu->temperature);
            sscanf(line, "power %u", &gpu->power);
            sscanf(line, "limit %u", &gpu->limit);
        }
    }
    fclose(file);
}

static int failing(const Failure *list, int count, const char *function) {
    for (int i = 0; i < count; i++)
        if (!strcmp(list[i].function, function)) return list[i].code;
    return SUCCESS;
}

/* What every function does first. */
static int called(const char *function) {
    const char *path = getenv("FAKE_NVML_CALLS");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (file) {
        fprintf(file, "%s\n", function);
        fclose(file);
    }
    read_world();
    return failing(failure, failures, function);
}

static Gpu *find(const char *uuid) {
    for (int i = 0; i < gpu_count; i++)
        if (!strcmp(gpus[i].uuid, uuid)) return &gpus[i];
    return NULL;
}

/* The GPU of a handle, or why a function cannot tell of it. */
static int ask(const char *function, const Handle *handle, Gpu **gpu) {
    int code = called(function);
    if (code) return code;
    if (!initialised) return UNINITIALIZED;
    if (!handle) return INVALID_ARGUMENT;
    *gpu = find(handle->uuid);
    if (!*gpu || (*gpu)->is_lost) return GPU_IS_LOST;
    return failing((*gpu)->failure, (*gpu)->failures, function);
}

static Handle *handle_of(const char *uuid) {
    for (int i = 0; i < handle_count; i++)
        if (!strcmp(handles[i].uuid, uuid)) return &handles[i];
    strcpy(handles[handle_count].uuid, uuid);
    return &handles[handle_count++];
}

static int text(const char *value, char *out, unsigned size) {
    if (strlen(value) >= size) return INSUFFICIENT_SIZE;
    strcpy(out, value);
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    int code = called("nvmlInitWithFlags");
    if (code) return code;
    if (!is_known) return DRIVER_NOT_LOADED;
    if (initialised++ == 0) {
        counted_count = 0;
        for (int i = 0; i < gpu_count; i++)
            if (!gpus[i].is_mig) counted[counted_count++] = handle_of(gpus[i].uuid);
    }
    return SUCCESS;
}

int nvmlShutdown(void) {
    int code = called("nvmlShutdown");
    if (code) return code;
    if (!initialised) return UNINITIALIZED;
    initialised--;
    return SUCCESS;
}

const char *nvmlErrorString(int code) {
    static char sentence[64];
    snprintf(sentence, sizeof sentence, "error %d of the driver", code);
    return sentence;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    int code = called("nvmlDeviceGetCount_v2");
    if (code) return code;
    if (!initialised) return UNINITIALIZED;
    *count = counted_count;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Handle **handle) {
    int code = called("nvmlDeviceGetHandleByIndex_v2");
    Gpu *gpu;
    if (code) return code;
    if (!initialised) return UNINITIALIZED;
    if ((int)index >= counted_count) return INVALID_ARGUMENT;
    gpu = find(counted[index]->uuid);
    if (!gpu || gpu->is_lost) return GPU_IS_LOST;
    code = failing(gpu->failure, gpu->failures, "nvmlDeviceGetHandleByIndex_v2");
    if (!code) *handle = counted[index];
    return code;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Handle **handle) {
    int code = called("nvmlDeviceGetHandleByUUID");
    if (code) return code;
    if (!initialised) return UNINITIALIZED;
    if (!find(uuid)) return NOT_FOUND;
    *handle = handle_of(uuid);
    return SUCCESS;
}

#define ASK(function)                           \
    Gpu *gpu;                                   \
    int code = ask(#function, handle, &gpu);    \
    if (code) return code

int nvmlDeviceGetUUID(Handle *handle, char *uuid, unsigned size) {
    ASK(nvmlDeviceGetUUID);
    return text(gpu->uuid, uuid, size);
}

int nvmlDeviceGetName(Handle *handle, char *name, unsigned size) {
    ASK(nvmlDeviceGetName);
    return text(gpu->name, name, size);
}

typedef struct { unsigned long long total, free, used; } Memory;

int nvmlDeviceGetMemoryInfo(Handle *handle, Memory *memory) {
    ASK(nvmlDeviceGetMemoryInfo);
    if (gpu->moves) gpu->used = (gpu->used + (1 << 20)) % gpu->total;
    *memory = (Memory){gpu->total, gpu->total - gpu->used, gpu->used};
    return SUCCESS;
}

typedef struct { unsigned gpu, memory; } Utilization;

int nvmlDeviceGetUtilizationRates(Handle *handle, Utilization *utilization) {
    ASK(nvmlDeviceGetUtilizationRates);
    *utilization = (Utilization){gpu->use, 0};
    return SUCCESS;
}

int nvmlDeviceGetTemperature(Handle *handle, int sensor, unsigned *temperature) {
    ASK(nvmlDeviceGetTemperature);
    if (sensor) return INVALID_ARGUMENT;
    *temperature = gpu->temperature;
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(Handle *handle, unsigned *power) {
    ASK(nvmlDeviceGetPowerUsage);
    *power = gpu->power;
    return SUCCESS;
}

int nvmlDeviceGetEnforcedPowerLimit(Handle *handle, unsigned *limit) {
    ASK(nvmlDeviceGetEnforcedPowerLimit);
    *limit = gpu->limit;
    return SUCCESS;
}

#if PROCESSES == 1
typedef struct { unsigned pid; unsigned long long used; } Process;
#define PROCESS(held) {(held).pid, (held).used}
#define COMPUTE nvmlDeviceGetComputeRunningProcesses
#define GRAPHICS nvmlDeviceGetGraphicsRunningProcesses
#elif PROCESSES == 2
#define COMPUTE nvmlDeviceGetComputeRunningProcesses_v2
#define GRAPHICS nvmlDeviceGetGraphicsRunningProcesses_v2
#else
#define COMPUTE nvmlDeviceGetComputeRunningProcesses_v3
#define GRAPHICS nvmlDeviceGetGraphicsRunningProcesses_v3
#endif
#if PROCESSES > 1
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } Process;
#define PROCESS(held) {(held).pid, (held).used, 0xffffffff, 0xffffffff}
#endif

static int list(const Held *held, int count, unsigned *room, Process *out) {
    unsigned has = *room;
    *room = count;
    if (has < (unsigned)count) return INSUFFICIENT_SIZE;
    for (int i = 0; i < count; i++) out[i] = (Process)PROCESS(held[i]);
    return SUCCESS;
}

#define PROCESSES_OF(function, of, count)                                   \
    int function(Handle *handle, unsigned *room, Process *out) {            \
        ASK(function);                                                      \
        return list(gpu->of, gpu->count, room, out);                        \
    }
#define EXPANDED(function, of, count) PROCESSES_OF(function, of, count)
EXPANDED(COMPUTE, compute, computes)
EXPANDED(GRAPHICS, graphic, graphics)
