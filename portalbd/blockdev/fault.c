/* Fails chosen requests: see fault.h. Everything else passes through untouched. */
#include "portalbd/blockdev/fault.h"

#include "portalbd/blockdev/layer_internal.h"

struct fault_plan {
    unsigned countdown; /* requests until it strikes, 0 when disarmed */
    int rc;
    bool always;
};

struct fault {
    struct bd_layer layer;
    struct fault_plan plans[BD_OPS];
};

/* The rc that this request gets, or 0. */
static int strike(struct fault_plan *plan) {
    if (plan->countdown == 0 || --plan->countdown > 0)
        return 0;
    if (plan->always)
        plan->countdown = 1;
    return plan->rc;
}

static bool fault_submit(struct blockdev *dev, struct bd_request *req) {
    struct fault *f = container_of(bd_layer_of(dev), struct fault, layer);
    CHECK((unsigned)req->op < BD_OPS);
    req->rc = strike(&f->plans[req->op]);
    return req->rc < 0 || bd_submit(f->layer.below, req);
}

static const struct blockdev_ops fault_ops = {
    .submit = fault_submit,
    .size_bytes = bd_layer_size_bytes,
    .close = bd_layer_close,
};

struct blockdev *bd_fault_open(struct blockdev *below) {
    struct fault *f = NEW(struct fault);
    bd_layer_init(&f->layer, &fault_ops, below);
    return &f->layer.dev;
}

void bd_fault_arm(struct blockdev *dev, enum bd_op op, unsigned nth, int rc, bool always) {
    struct fault *f = container_of(bd_layer_of(dev), struct fault, layer);
    CHECK((unsigned)op < BD_OPS && dev->ops == &fault_ops);
    CHECK(rc <= 0 && (rc == 0 || nth > 0));
    f->plans[op] = (struct fault_plan){.countdown = rc ? nth : 0, .rc = rc, .always = always};
}
