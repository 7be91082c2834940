/* An intrusive, circular, doubly linked list. The head is a node too; a node belongs to at most one
 * list. */
#pragma once

#include "common/base.h"

struct list_node {
    struct list_node *prev;
    struct list_node *next;
};

static inline void list_init(struct list_node *head) {
    head->prev = head->next = head;
}

static inline bool list_empty(const struct list_node *head) {
    return head->next == head;
}

/* True for a node that is on a list; a node starts zeroed and list_remove zeroes it again. */
static inline bool list_linked(const struct list_node *n) {
    return n->next != NULL;
}

static inline void list_insert_before_(struct list_node *at, struct list_node *n) {
    CHECK(!list_linked(n));
    n->prev = at->prev;
    n->next = at;
    at->prev->next = n;
    at->prev = n;
}

static inline void list_push_back(struct list_node *head, struct list_node *n) {
    list_insert_before_(head, n);
}

static inline void list_push_front(struct list_node *head, struct list_node *n) {
    list_insert_before_(head->next, n);
}

static inline void list_remove(struct list_node *n) {
    CHECK(list_linked(n));
    n->prev->next = n->next;
    n->next->prev = n->prev;
    n->prev = n->next = NULL;
}

static inline struct list_node *list_pop_front(struct list_node *head) {
    if (list_empty(head))
        return NULL;
    struct list_node *n = head->next;
    list_remove(n);
    return n;
}

#define list_entry(node, type, member) container_of(node, type, member)

/* The body may remove the node it is at. */
#define list_for_each(head, node)                                                                  \
    for (struct list_node *node = (head)->next, *node##_next = node->next; node != (head);         \
         node = node##_next, node##_next = node->next)
