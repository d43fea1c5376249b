package credential

import (
	lru "github.com/hashicorp/golang-lru/v2"
)

// A cache from shardFrom leases on has shards: golang-lru has one lock for each
// cache, and readers on several cores would meet there. The leases of a task
// lie together in one, so that to choose costs nothing on the hit path; a shard
// has room for several tasks with as many leases as they may have by default.
const (
	shardFrom   = 16 << 10
	cacheShards = 16
)

// cache keeps live leases by key, bounded, the least recently used out first.
// It is read from anywhere and written with the broker's mu held.
type cache struct {
	shards  []*lru.Cache[key, *lease]
	evicted *lease // by the last put
}

func newCache(size int) *cache {
	n := 1
	if size >= shardFrom {
		n = cacheShards
	}
	c := &cache{shards: make([]*lru.Cache[key, *lease], n)}
	for i := range c.shards {
		// It fails for sizes below one only.
		c.shards[i], _ = lru.NewWithEvict((size+n-1)/n, func(_ key, l *lease) { c.evicted = l })
	}
	return c
}

func (c *cache) of(k key) *lru.Cache[key, *lease] {
	return c.shards[k.task.shard%uint32(len(c.shards))]
}

// peek returns the lease of a key. Its lock is shared between readers, so the
// cache does not learn of the use; see touch.
func (c *cache) peek(k key) (*lease, bool) { return c.of(k).Peek(k) }

// touch tells the cache of a use.
func (c *cache) touch(k key) { c.of(k).Get(k) }

// put enters a lease and returns those that lost their place: one it replaces,
// of which golang-lru does not tell, or the one that was evicted for it.
func (c *cache) put(k key, l *lease) (out []*lease) {
	shard := c.of(k)
	if old, ok := shard.Peek(k); ok && old != l {
		out = append(out, old)
	}
	c.evicted = nil
	if shard.Add(k, l) {
		out = append(out, c.evicted)
	}
	return out
}

// remove takes a lease out, if it is still there.
func (c *cache) remove(l *lease) {
	if shard := c.of(l.key); shard.Contains(l.key) {
		if x, _ := shard.Peek(l.key); x == l {
			shard.Remove(l.key)
		}
	}
}
