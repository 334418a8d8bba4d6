/* A stand-in for libnvidia-ml.so.1: the driver as cprbench sees it, with a clock and power curves that a test sets.
 *
 * shim_load takes lines:
 *   driver VERSION                        init CODE (what nvmlInit answers)
 *   device UUID MEMORY LIMIT_MW NAME...   devices get the numbers 0, 1, ...
 *   curve D T WATTS                       power, linear between points; two points at one T make a jump
 *   used D T BYTES                        memory in use from T on
 *   step D SECONDS                        how often the energy counter is brought up to date (default 0.1)
 *   offset D JOULES                       what the counter stood at at T = 0
 *   reset D T                             the counter starts anew at 0
 *   fail D FUNCTION CODE FROM UNTIL       FUNCTION "*": every one; "instant": the power field
 *   process D PID BYTES
 *   mig D UUID SLICES OF MEMORY NAME...   MIG is on; one slice
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, DRIVER_NOT_LOADED = 9 };
enum { DEVICES = 4, POINTS = 64 };

typedef unsigned long long u64;
typedef struct {
    char uuid[96], name[96];
    u64 memory;
    unsigned limit_mw;
    double step, offset;
    int curves, useds, resets, fails, processes;
    double curve[POINTS][2], used[POINTS][2], reset[POINTS];
    struct { char function[64]; int code; double from, until; } fail[POINTS];
    struct { unsigned pid; u64 bytes; } process[POINTS];
    int parent;         /* of a MIG slice, else -1 */
    int slices, of;     /* of a MIG slice */
    int slice;          /* of a board in MIG mode: its slice, else -1 */
} Device;

static Device devices[2 * DEVICES];
static int boards, slices_made, init_code = DRIVER_NOT_LOADED;
static char driver[80];
static double now;

static double power_at(const Device *d, double t)
{
    double watts = d->curves ? d->curve[0][1] : 0;
    for (int i = 0; i < d->curves; i++) {
        if (d->curve[i][0] <= t)
            watts = d->curve[i][1];
        else if (i > 0) {
            double *a = (double *)d->curve[i - 1], *b = (double *)d->curve[i];
            return a[1] + (b[1] - a[1]) * (t - a[0]) / (b[0] - a[0]);
        }
        else
            return watts;
    }
    return watts;
}

/* The integral of the curve from 0 to t: exact, piece by piece. */
static double energy_at(const Device *d, double t)
{
    double sum = 0, low = 0, watts = power_at(d, 0);
    for (int i = 0; i < d->curves && d->curve[i][0] <= t; i++) {
        double *p = (double *)d->curve[i];
        if (p[0] > low) {
            double before = i ? d->curve[i - 1][1] : p[1];
            sum += (p[0] - low) * ((i ? before : p[1]) + p[1]) / 2;
            low = p[0];
        }
        watts = p[1];
    }
    return sum + (t - low) * (watts + power_at(d, t)) / 2;
}

static double counter_at(const Device *d, double t)
{
    double seen = floor(t / d->step + 1e-6) * d->step, base = -d->offset;
    for (int i = 0; i < d->resets; i++)
        if (d->reset[i] <= t)
            base = energy_at(d, d->reset[i]);
    double joules = energy_at(d, seen) - base;
    return joules > 0 ? joules : 0;
}

static int failing(const Device *d, const char *function)
{
    for (int i = 0; i < d->fails; i++)
        if ((!strcmp(d->fail[i].function, "*") || !strcmp(d->fail[i].function, function))
            && now >= d->fail[i].from - 1e-9 && now < d->fail[i].until - 1e-9)
            return d->fail[i].code;
    return OK;
}
#define BOARD_OF(d) ((d)->parent < 0 ? (d) : &devices[(d)->parent])
#define ANSWER(d) do { int code = failing(BOARD_OF(d), __func__); if (code) return code; } while (0)
#define BOARD_ONLY(d) do { if ((d)->parent >= 0) return NOT_SUPPORTED; } while (0)

void shim_time(double t) { now = t; }

int shim_load(const char *script)
{
    char line[512];
    memset(devices, 0, sizeof devices);
    boards = slices_made = init_code = 0;
    now = 0;
    strcpy(driver, "999.01");
    for (const char *p = script; *p; p += strcspn(p, "\n"), p += *p == '\n') {
        int d = 0, at = 0, code;
        double t, value;
        snprintf(line, sizeof line, "%.*s", (int)strcspn(p, "\n"), p);
        Device *new = &devices[boards];
        if (sscanf(line, "driver %79s", driver) == 1 || sscanf(line, "init %d", &init_code) == 1)
            continue;
        if (sscanf(line, "device %95s %llu %u %n", new->uuid, &new->memory, &new->limit_mw, &at) == 3) {
            snprintf(new->name, sizeof new->name, "%s", line + at);
            new->step = 0.1;
            new->parent = new->slice = -1;
            boards++;
            continue;
        }
        char word[96], second[96];
        if (sscanf(line, "%95s %d %n", word, &d, &at) != 2 || d < 0 || d >= boards)
            return -1;
        Device *dev = &devices[d];
        const char *rest = line + at;
        if (!strcmp(word, "curve") && sscanf(rest, "%lf %lf", &t, &value) == 2) {
            dev->curve[dev->curves][0] = t;
            dev->curve[dev->curves++][1] = value;
        } else if (!strcmp(word, "used") && sscanf(rest, "%lf %lf", &t, &value) == 2) {
            dev->used[dev->useds][0] = t;
            dev->used[dev->useds++][1] = value;
        } else if (!strcmp(word, "step") && sscanf(rest, "%lf", &value) == 1)
            dev->step = value;
        else if (!strcmp(word, "offset") && sscanf(rest, "%lf", &value) == 1)
            dev->offset = value;
        else if (!strcmp(word, "reset") && sscanf(rest, "%lf", &t) == 1)
            dev->reset[dev->resets++] = t;
        else if (!strcmp(word, "fail")
                 && sscanf(rest, "%63s %d %lf %lf", dev->fail[dev->fails].function, &code, &t, &value) == 4) {
            dev->fail[dev->fails].code = code;
            dev->fail[dev->fails].from = t;
            dev->fail[dev->fails++].until = value;
        } else if (!strcmp(word, "process")
                   && sscanf(rest, "%u %llu", &dev->process[dev->processes].pid,
                             &dev->process[dev->processes].bytes) == 2)
            dev->processes++;
        else if (!strcmp(word, "mig")) {
            dev->slice = DEVICES + slices_made++;
            Device *slice = &devices[dev->slice];
            if (sscanf(rest, "%95s %d %d %llu %n", second, &slice->slices, &slice->of, &slice->memory, &at) != 4)
                return -1;
            strcpy(slice->uuid, second);
            snprintf(slice->name, sizeof slice->name, "%s", rest + at);
            slice->parent = d;
        } else
            return -1;
    }
    return 0;
}

/* --- the driver's own names ---------------------------------------------------------------------- */

const char *nvmlErrorString(int code)
{
    static char text[32];
    snprintf(text, sizeof text, "error %d", code);
    return text;
}
int nvmlInitWithFlags(unsigned flags) { (void)flags; return init_code; }
int nvmlShutdown(void) { return OK; }
int nvmlSystemGetDriverVersion(char *out, unsigned size) { snprintf(out, size, "%s", driver); return OK; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = boards; return OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **out)
{
    if (index >= (unsigned)boards)
        return INVALID;
    *out = &devices[index];
    ANSWER(*out);
    return OK;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, Device **out)
{
    for (int i = 0; i < 2 * DEVICES; i++)
        if (devices[i].uuid[0] && !strcmp(devices[i].uuid, uuid)) {
            *out = &devices[i];
            return OK;
        }
    return NOT_FOUND;
}
int nvmlDeviceGetUUID(Device *d, char *out, unsigned size) { ANSWER(d); snprintf(out, size, "%s", d->uuid); return OK; }
int nvmlDeviceGetName(Device *d, char *out, unsigned size) { ANSWER(d); snprintf(out, size, "%s", d->name); return OK; }
int nvmlDeviceGetEnforcedPowerLimit(Device *d, unsigned *mw) { ANSWER(d); BOARD_ONLY(d); *mw = d->limit_mw; return OK; }

int nvmlDeviceGetMemoryInfo(Device *d, u64 *total_free_used)
{
    double used = 0;
    Device *board = BOARD_OF(d);
    ANSWER(d);
    for (int i = 0; i < board->useds; i++)
        if (board->used[i][0] <= now + 1e-9)
            used = board->used[i][1];
    total_free_used[0] = d->memory;
    total_free_used[1] = d->memory - (u64)used;
    total_free_used[2] = (u64)used;
    return OK;
}
int nvmlDeviceGetTotalEnergyConsumption(Device *d, u64 *mj)
{
    ANSWER(d);
    BOARD_ONLY(d);
    *mj = (u64)llround(1000 * counter_at(d, now));
    return OK;
}
/* Like most boards': the mean of the last second. */
int nvmlDeviceGetPowerUsage(Device *d, unsigned *mw)
{
    ANSWER(d);
    BOARD_ONLY(d);
    double from = now > 1 ? now - 1 : 0;
    *mw = now > 0 ? (unsigned)lround(1000 * (energy_at(d, now) - energy_at(d, from)) / (now - from))
                  : (unsigned)lround(1000 * power_at(d, 0));
    return OK;
}

typedef struct {
    unsigned field, scope;
    long long timestamp, latency;
    int type, code;
    union { double real; unsigned u32; u64 wide; } value;
} Field;

int nvmlDeviceGetFieldValues(Device *d, int count, Field *fields)
{
    ANSWER(d);
    for (int i = 0; i < count; i++) {
        int code = failing(d, "instant");
        fields[i].code = fields[i].field == 186 && d->parent < 0 ? code : NOT_SUPPORTED;
        fields[i].type = 1;
        fields[i].value.u32 = (unsigned)lround(1000 * power_at(d, now));
    }
    return OK;
}
int nvmlDeviceGetClockInfo(Device *d, int kind, unsigned *mhz)
{
    ANSWER(d);
    BOARD_ONLY(d);
    *mhz = kind == 1 ? 1500 : 0;
    return OK;
}
/* nvmlDeviceGetTemperatureV is left out, as in older drivers. */
int nvmlDeviceGetTemperature(Device *d, int sensor, unsigned *celsius)
{
    ANSWER(d);
    BOARD_ONLY(d);
    *celsius = sensor == 0 ? 40 + (unsigned)now : 0;
    return OK;
}

typedef struct { unsigned pid; u64 bytes; unsigned gpu_instance, compute_instance; } Process;

int nvmlDeviceGetComputeRunningProcesses_v3(Device *d, unsigned *count, Process *out)
{
    ANSWER(d);
    unsigned room = *count, n = d->processes;
    *count = n;
    if (n == 0)
        return OK;
    if (room < n || out == NULL)
        return TOO_SMALL;
    for (unsigned i = 0; i < n; i++)
        out[i] = (Process){d->process[i].pid, d->process[i].bytes, ~0u, ~0u};
    return OK;
}

int nvmlDeviceGetMigMode(Device *d, unsigned *current, unsigned *pending)
{
    ANSWER(d);
    BOARD_ONLY(d);
    *current = *pending = d->slice >= 0;
    return OK;
}
int nvmlDeviceGetMigDeviceHandleByIndex(Device *d, unsigned index, Device **out)
{
    if (d->slice < 0 || index > 0)
        return NOT_FOUND;
    *out = &devices[d->slice];
    return OK;
}
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Device *d, Device **out)
{
    if (d->parent < 0)
        return INVALID;
    *out = &devices[d->parent];
    return OK;
}
int nvmlDeviceGetMaxMigDeviceCount(Device *d, unsigned *count)
{
    BOARD_ONLY(d);
    *count = d->slice >= 0 ? devices[d->slice].of : 0;
    return OK;
}

typedef struct {
    unsigned sm, copy, decoder, encoder, jpeg, ofa, gpu_slices, compute_slices;
    u64 memory_mb;
} Attributes;

int nvmlDeviceGetAttributes_v2(Device *d, Attributes *out)
{
    if (d->parent < 0)
        return NOT_SUPPORTED;
    memset(out, 0, sizeof *out);
    out->gpu_slices = out->compute_slices = d->slices;
    out->memory_mb = d->memory >> 20;
    return OK;
}
