// GPUs are leased at night only, and at most a share of what is free. The twin of ../night-gpu in C.
//
// What is returned belongs to the caller, who gives it back with free(): everything is allocated, also fixed texts. An
// instance lives for one work unit, and what it forgets goes with it.

#include <stdlib.h>
#include <string.h>

#include "lease_policy.h"

#define GPU "nvidia.com/gpu"
#define DAY (24 * 60)

typedef lease_policy_string_t text_t;
typedef kubeocean_policy_types_now_t now_t;

// The settings.
struct exports_kubeocean_policy_lease_lease_evaluator_t {
  int64_t from, until, percent;
};
typedef struct exports_kubeocean_policy_lease_lease_evaluator_t policy_t;

static const char SCHEMA[] =
    "{\"$schema\":\"https://json-schema.org/draft/2020-12/schema\",\"title\":\"NightGpu\",\"type\":\"object\","
    "\"additionalProperties\":false,\"required\":[\"from\",\"until\",\"percent\"],\"properties\":{"
    "\"from\":{\"description\":\"Hour of the day at which leasing starts\",\"type\":\"integer\",\"minimum\":0,\"maximum\":23},"
    "\"until\":{\"description\":\"Hour of the day at which leasing ends\",\"type\":\"integer\",\"minimum\":0,\"maximum\":23},"
    "\"percent\":{\"description\":\"Share of the free GPUs that is leased\",\"type\":\"integer\",\"minimum\":0,\"maximum\":100}"
    "}}";

static void *allocate(size_t size) {
  void *memory = calloc(1, size);
  if (!memory) __builtin_trap();
  return memory;
}

void exports_kubeocean_policy_meta_describe(exports_kubeocean_policy_meta_description_t *ret) {
  lease_policy_string_dup(&ret->name, "night-gpu-c");
  lease_policy_string_dup(&ret->version, "1.0.0");
  lease_policy_string_dup(&ret->description, "GPUs are leased at night only, and at most a share of what is free.");
  lease_policy_string_dup(&ret->settings_schema, SCHEMA);
}

// The number of a member. The host has checked the settings against the schema and wrote them without spaces, so there
// are three members with small numbers and nothing else.
static bool number(const text_t *settings, const char *member, int64_t *value) {
  size_t length = strlen(member);
  for (size_t at = 0; at + length < settings->len; at++) {
    if (memcmp(settings->ptr + at, member, length) != 0) continue;
    const uint8_t *digit = settings->ptr + at + length, *end = settings->ptr + settings->len;
    if (digit == end || *digit < '0' || *digit > '9') return false;
    for (*value = 0; digit < end && *digit >= '0' && *digit <= '9' && *value < 1000; digit++) {
      *value = *value * 10 + (*digit - '0');
    }
    return true;
  }
  return false;
}

bool exports_kubeocean_policy_lease_static_lease_evaluator_create(
    text_t *settings, exports_kubeocean_policy_lease_own_lease_evaluator_t *ret, text_t *err) {
  policy_t *policy = allocate(sizeof *policy);
  if (!number(settings, "\"from\":", &policy->from) || !number(settings, "\"until\":", &policy->until) ||
      !number(settings, "\"percent\":", &policy->percent)) {
    lease_policy_string_dup(err, "settings: needs whole numbers from, until and percent");
    return false;
  }
  *ret = exports_kubeocean_policy_lease_lease_evaluator_new(policy);
  return true;
}

void exports_kubeocean_policy_lease_lease_evaluator_destructor(policy_t *policy) { free(policy); }

static void one(lease_policy_list_string_t *list, const char *text) {
  list->ptr = allocate(sizeof *list->ptr);
  list->len = 1;
  lease_policy_string_dup(list->ptr, text);
}

void exports_kubeocean_policy_lease_method_lease_evaluator_needs(policy_t *self, kubeocean_policy_types_needs_t *ret) {
  (void)self;
  memset(ret, 0, sizeof *ret);
  one(&ret->numbers, "available/" GPU);
  one(&ret->caps, GPU);
}

// Whether the local time is in [from, until), and for how many minutes that holds; 0: for ever. Minutes since midnight.
static bool daily(const now_t *now, int64_t from, int64_t until, int64_t *minutes) {
  *minutes = 0;
  if (from == until) return true;
  int64_t since = (now->minute_of_day + DAY - from) % DAY, length = (until + DAY - from) % DAY;
  *minutes = since < length ? length - since : DAY - since;
  return since < length;
}

// The instant after so many minutes of the local clock; at its next change at the latest, as the clock jumps then.
static int64_t after(const now_t *now, int64_t minutes) {
  int64_t second = (now->unix_seconds + now->utc_offset_seconds) % 60;
  int64_t at = now->unix_seconds - second + minutes * 60;
  if (now->next_offset.is_some && now->next_offset.val.at > now->unix_seconds && now->next_offset.val.at < at) {
    return now->next_offset.val.at;
  }
  return at;
}

bool exports_kubeocean_policy_lease_method_lease_evaluator_lease(
    policy_t *self, now_t *now, kubeocean_policy_types_frame_t *nodes,
    exports_kubeocean_policy_lease_lease_output_t *ret, text_t *err) {
  (void)err;
  int64_t minutes;
  bool night = daily(now, self->from * 60, self->until * 60, &minutes);
  memset(ret, 0, sizeof *ret);
  ret->reasons.ptr = allocate(sizeof *ret->reasons.ptr);
  ret->reasons.len = 1;
  lease_policy_string_dup(&ret->reasons.ptr->code, "NightGpu");
  lease_policy_string_dup(&ret->reasons.ptr->message, "GPUs are leased at night only");
  ret->rows.len = ret->caps.len = nodes->rows;
  ret->rows.ptr = allocate(nodes->rows * sizeof *ret->rows.ptr);
  ret->caps.ptr = allocate(nodes->rows * sizeof *ret->caps.ptr);
  for (size_t row = 0; row < nodes->rows; row++) {
    exports_kubeocean_policy_lease_lease_row_t *answer = &ret->rows.ptr[row];
    answer->verdict = EXPORTS_KUBEOCEAN_POLICY_LEASE_VERDICT_OFFER;
    answer->reclaim.tag = EXPORTS_KUBEOCEAN_POLICY_LEASE_RECLAIM_KEEP;
    answer->valid_until.is_some = minutes != 0;
    answer->valid_until.val = after(now, minutes);
    answer->reason.is_some = true;
    answer->reason.val = 0;
    // One number per row: what is free.
    int64_t available = nodes->numbers.ptr[row];
    ret->caps.ptr[row] = night ? (int64_t)((__int128)available * self->percent / 100) : 0;
  }
  return true;
}
