package credential

import (
	"sync/atomic"

	lru "github.com/hashicorp/golang-lru/v2"
)

// cacheShards is how many caches share the keys of a broker. golang-lru has one
// lock for each cache; readers on several cores would meet there.
const cacheShards = 16

// cache keeps live leases by key, bounded, the least recently used out first.
// It is read from anywhere and written with the broker's mu held.
type cache struct {
	shards  []*lru.Cache[key, *lease]
	dropped []*lease // leases that it let go, for the broker to retire; under the broker's mu
}

// newCache returns a cache of at most size leases. A small one has one shard
// and with it an exact order; in a large one each shard has its own.
func newCache(size int) *cache {
	n := cacheShards
	if size < cacheShards*64 {
		n = 1
	}
	c := &cache{shards: make([]*lru.Cache[key, *lease], n)}
	for i := range c.shards {
		// lru.New fails for sizes below one only.
		c.shards[i], _ = lru.NewWithEvict(size/n, func(_ key, l *lease) { c.dropped = append(c.dropped, l) })
	}
	return c
}

// lastShard deals tasks out to shards. A task's leases lie together: they are
// few, see TaskOptions.MaxLeases, and choosing costs nothing on the hit path.
var lastShard atomic.Uint32

func (c *cache) of(k key) *lru.Cache[key, *lease] {
	return c.shards[k.task.shard%uint32(len(c.shards))]
}

// peek returns the lease of a key. Its lock is shared between readers, so the
// cache does not learn of the use; see touch.
func (c *cache) peek(k key) (*lease, bool) { return c.of(k).Peek(k) }

// touch tells the cache of a use.
func (c *cache) touch(k key) { c.of(k).Get(k) }

// put enters a lease and returns the one it replaces, of which golang-lru does
// not tell.
func (c *cache) put(k key, l *lease) (old *lease) {
	old, _ = c.of(k).Peek(k)
	c.of(k).Add(k, l)
	return old
}

// remove takes a lease out, if it is still there.
func (c *cache) remove(l *lease) {
	if x, ok := c.peek(l.key); ok && x == l {
		c.of(l.key).Remove(l.key)
	}
}

// takeDropped returns what was let go since the last call.
func (c *cache) takeDropped() []*lease {
	d := c.dropped
	c.dropped = nil
	return d
}
