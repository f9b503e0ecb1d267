/* A stand-in for libnvidia-ml.so.1 that answers from the text file named by FAKE_NVML.
 *
 * One directive a line, words separated by single spaces, values may hold no space but '_'
 * is shown as a space in names:
 *   driver VERSION            cuda NUMBER (12080)
 *   gpu NAME TOTAL_MIB USED_MIB UUID MAJOR MINOR MIG(0|1)
 *   mig PARENT NAME TOTAL_MIB USED_MIB UUID
 *   load GPU PERCENT CELSIUS THROTTLE_BITS
 *   process GPU PID USED_MIB
 *   fail FUNCTION CODE        hang FUNCTION
 * The file is read again at every nvmlInit, so a test may change the machine.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LIMIT 64
#define SUCCESS 0
#define INVALID 2
#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define TOO_SMALL 7
#define MIB (1024ull * 1024ull)

typedef struct {
  char name[96], uuid[96];
  unsigned long long total, used;
  int major, minor, mig, parent; /* parent: -1 for a card */
  unsigned load, heat;
  unsigned long long throttle;
} device_t;
typedef struct { int gpu; unsigned pid; unsigned long long used; } process_t;
typedef struct { char name[64]; int code; int hang; } fault_t;

static device_t devices[LIMIT];
static process_t processes[LIMIT];
static fault_t faults[LIMIT];
static int device_count, process_count, fault_count, cuda_version;
static char driver[64];

static void unescape(char *text) {
  for (; *text; text++)
    if (*text == '_') *text = ' ';
}

static void read_file(void) {
  device_count = process_count = fault_count = cuda_version = 0;
  driver[0] = 0;
  const char *path = getenv("FAKE_NVML");
  FILE *file = path ? fopen(path, "r") : NULL;
  char line[512];
  while (file && fgets(line, sizeof line, file)) {
    device_t d;
    memset(&d, 0, sizeof d);
    d.parent = -1;
    fault_t f;
    memset(&f, 0, sizeof f);
    process_t p;
    unsigned index, load, heat;
    unsigned long long bits;
    if (sscanf(line, "driver %63s", driver) == 1) continue;
    if (sscanf(line, "cuda %d", &cuda_version) == 1) continue;
    if (sscanf(line, "gpu %95s %llu %llu %95s %d %d %d", d.name, &d.total, &d.used, d.uuid,
               &d.major, &d.minor, &d.mig) == 7 ||
        sscanf(line, "mig %d %95s %llu %llu %95s", &d.parent, d.name, &d.total, &d.used,
               d.uuid) == 5) {
      unescape(d.name);
      devices[device_count++] = d;
    } else if (sscanf(line, "load %u %u %u %llu", &index, &load, &heat, &bits) == 4) {
      devices[index].load = load;
      devices[index].heat = heat;
      devices[index].throttle = bits;
    } else if (sscanf(line, "process %d %u %llu", &p.gpu, &p.pid, &p.used) == 3) {
      processes[process_count++] = p;
    } else if (sscanf(line, "fail %63s %d", f.name, &f.code) == 2) {
      faults[fault_count++] = f;
    } else if (sscanf(line, "hang %63s", f.name) == 1) {
      f.hang = 1;
      faults[fault_count++] = f;
    }
  }
  if (file) fclose(file);
}

/* The code that FUNCTION shall fail with; does not return when it shall hang. */
static int fault(const char *function) {
  for (int i = 0; i < fault_count; i++)
    if (strcmp(faults[i].name, function) == 0) {
      while (faults[i].hang) pause();
      return faults[i].code;
    }
  return SUCCESS;
}

#define ENTER() \
  int code = fault(__func__); \
  if (code != SUCCESS) return code

static int cards(void) {
  int count = 0;
  for (int i = 0; i < device_count; i++) count += devices[i].parent < 0;
  return count;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; read_file(); ENTER(); return SUCCESS; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { ENTER(); return SUCCESS; }
const char *nvmlErrorString(int code) {
  static char text[32];
  snprintf(text, sizeof text, "fake error %d", code);
  return text;
}
int nvmlSystemGetDriverVersion(char *out, unsigned size) {
  ENTER();
  snprintf(out, size, "%s", driver);
  return SUCCESS;
}
int nvmlSystemGetCudaDriverVersion_v2(int *out) { ENTER(); *out = cuda_version; return SUCCESS; }
int nvmlSystemGetCudaDriverVersion(int *out) { ENTER(); *out = cuda_version; return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *out) { ENTER(); *out = cards(); return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t **out) {
  ENTER();
  unsigned seen = 0;
  for (int i = 0; i < device_count; i++)
    if (devices[i].parent < 0 && seen++ == index) {
      *out = &devices[i];
      return SUCCESS;
    }
  return INVALID;
}
int nvmlDeviceGetName(device_t *d, char *out, unsigned size) {
  ENTER();
  snprintf(out, size, "%s", d->name);
  return SUCCESS;
}
int nvmlDeviceGetUUID(device_t *d, char *out, unsigned size) {
  ENTER();
  snprintf(out, size, "%s", d->uuid);
  return SUCCESS;
}
int nvmlDeviceGetMemoryInfo(device_t *d, unsigned long long *out) {
  ENTER();
  out[0] = d->total * MIB;
  out[1] = (d->total - d->used) * MIB;
  out[2] = d->used * MIB;
  return SUCCESS;
}
int nvmlDeviceGetCudaComputeCapability(device_t *d, int *major, int *minor) {
  ENTER();
  if (d->parent >= 0) return NOT_SUPPORTED;
  *major = d->major;
  *minor = d->minor;
  return SUCCESS;
}
int nvmlDeviceGetMigMode(device_t *d, unsigned *current, unsigned *pending) {
  ENTER();
  if (d->parent >= 0 || d->mig < 0) return NOT_SUPPORTED;
  *current = *pending = d->mig;
  return SUCCESS;
}
int nvmlDeviceGetMaxMigDeviceCount(device_t *d, unsigned *out) {
  ENTER();
  *out = d->mig > 0 ? 7 : 0;
  return SUCCESS;
}
/* Instances sit in every second slot: empty slots are part of the real interface. */
int nvmlDeviceGetMigDeviceHandleByIndex(device_t *d, unsigned slot, device_t **out) {
  ENTER();
  unsigned seen = 0, parent = (unsigned)(d - devices);
  for (int i = 0; i < device_count; i++)
    if (devices[i].parent == (int)parent && seen++ * 2 == slot) {
      *out = &devices[i];
      return SUCCESS;
    }
  return NOT_FOUND;
}
int nvmlDeviceGetUtilizationRates(device_t *d, unsigned *out) {
  ENTER();
  if (d->parent >= 0) return NOT_SUPPORTED;
  out[0] = d->load;
  out[1] = 0;
  return SUCCESS;
}
int nvmlDeviceGetTemperature(device_t *d, int sensor, unsigned *out) {
  (void)sensor;
  ENTER();
  *out = d->heat;
  return SUCCESS;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(device_t *d, unsigned long long *out) {
  ENTER();
  *out = d->throttle;
  return SUCCESS;
}
typedef struct {
  unsigned pid;
  unsigned long long used;
  unsigned gpu_instance, compute_instance;
} process_info_t;
int nvmlDeviceGetComputeRunningProcesses_v3(device_t *d, unsigned *count, process_info_t *out) {
  ENTER();
  unsigned found = 0;
  for (int i = 0; i < process_count; i++) {
    if (&devices[processes[i].gpu] != d) continue;
    if (out && found < *count) {
      out[found].pid = processes[i].pid;
      out[found].used = processes[i].used * MIB;
      out[found].gpu_instance = out[found].compute_instance = 0xffffffffu;
    }
    found++;
  }
  unsigned room = out ? *count : 0;
  *count = found;
  return found > room ? TOO_SMALL : SUCCESS;
}
