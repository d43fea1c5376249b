package credential

import (
	"slices"
	"sync/atomic"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/taskcred/taskcred/scope"
)

// cache keeps live leases by key, bounded, the least recently used out first.
// It is read from anywhere and written with the broker's mu held.
//
// golang-lru decides who stays. Its one lock is where readers on several cores
// would meet, so what is in the cache lies within the reach of its task, too: a
// hit there takes no lock and writes to nothing that two tasks share.
type cache struct {
	lru     *lru.Cache[key, *lease]
	size    int
	held    map[*Task]int // leases of each task and its steps
	evicted *lease        // by the last put
}

func newCache(size int) *cache {
	c := &cache{size: size, held: map[*Task]int{}}
	c.lru, _ = lru.NewWithEvict(size, c.left) // fails for sizes below one only
	return c
}

// left notes that a lease is out, because it was evicted or removed.
func (c *cache) left(k key, l *lease) {
	c.evicted = l
	l.task.reach.remove(l)
	root := k.task.root
	if c.held[root]--; c.held[root] == 0 {
		delete(c.held, root)
	}
}

// peek returns the lease of a key. The cache does not learn of the use; see
// touch.
func (c *cache) peek(k key) (*lease, bool) {
	if l := k.task.reach.get(c, k); l != nil {
		return l, true
	}
	return c.lru.Peek(k)
}

// touch tells the cache of a use.
func (c *cache) touch(k key) { c.lru.Get(k) }

// put enters a lease and returns those that lost their place: one it replaces,
// of which golang-lru does not tell, or the one that was evicted for it.
//
// In a full cache a task that holds a quarter of it, with its steps, makes room
// for itself: one that asks for ever more scopes pushes out nobody else's.
func (c *cache) put(k key, l *lease) (out []*lease) {
	root := k.task.root
	c.evicted = nil
	switch old, ok := c.lru.Peek(k); {
	case ok && old == l:
		return nil
	case ok:
		out = append(out, old)
		old.task.reach.remove(old)
		c.held[root]--
	case c.lru.Len() == c.size && c.held[root] >= max(c.size/4, 1):
		keys := c.lru.Keys() // oldest first
		if i := slices.IndexFunc(keys, func(x key) bool { return x.task.root == root }); i >= 0 {
			c.lru.Remove(keys[i])
		}
	}
	c.lru.Add(k, l)
	c.held[root]++
	k.task.reach.put(c, l)
	if c.evicted != nil {
		out = append(out, c.evicted)
	}
	return out
}

// remove takes a lease out, if it is still there.
func (c *cache) remove(l *lease) {
	if x, ok := c.lru.Peek(l.key); ok && x == l {
		c.lru.Remove(l.key)
	}
}

// removeBound takes out the leases of a holder.
func (c *cache) removeBound(h *holder) (out []*lease) {
	for _, k := range c.lru.Keys() {
		if l, ok := c.lru.Peek(k); ok && k.holder == h {
			c.lru.Remove(k)
			out = append(out, l)
		}
	}
	return out
}

// reach holds what a task put into caches last, those of all brokers together.
// It is an index and no more: what it does not hold is found in the cache.
type reach struct {
	last atomic.Pointer[place]
}

// place says where in reach a lease lies. Places are never changed.
type place struct {
	next   *place
	cache  *cache
	scope  scope.Any
	holder *holder
	lease  *lease
}

// maxReach is how many leases are looked through, one after the other, before
// the cache is asked.
const maxReach = 16

func (r *reach) get(c *cache, k key) *lease {
	for p := r.last.Load(); p != nil; p = p.next {
		if p.scope == k.scope && p.cache == c && p.holder == k.holder {
			return p.lease
		}
	}
	return nil
}

func (r *reach) put(c *cache, l *lease) {
	for {
		old := r.last.Load()
		p := &place{next: old.without(nil, maxReach-1), cache: c, scope: l.key.scope, holder: l.key.holder, lease: l}
		if r.last.CompareAndSwap(old, p) { // brokers write here with locks of their own
			return
		}
	}
}

func (r *reach) remove(l *lease) {
	for {
		old := r.last.Load()
		if r.last.CompareAndSwap(old, old.without(l, maxReach)) {
			return
		}
	}
}

// without returns a list of at most n places without that of l.
func (p *place) without(l *lease, n int) *place {
	switch {
	case p == nil || n == 0:
		return nil
	case p.lease == l:
		return p.next.without(nil, n)
	}
	rest := p.next.without(l, n-1)
	if rest == p.next {
		return p // nothing changes from here on
	}
	return &place{rest, p.cache, p.scope, p.holder, p.lease}
}
