// Package benchpeer compares the time of a function with that of its peers, for
// benchmarks on a machine that is busy with other work.
//
//	func BenchmarkCached(b *testing.B) {
//		benchpeer.Run(b, hit, benchpeer.Peer{Name: "oauth2", Call: reuse})
//	}
//
// The functions take turns in pieces of about 100 µs. One iteration of the
// benchmark is one round: a piece of each function. Each round begins with
// another function. Other work on the machine then slows all of them alike, or
// spoils a few rounds, which the median ignores. The benchmark reports
//
//   - ns/op, B/op and allocs/op of the function, the first as a median;
//   - NAME-ns/op, the median time of each peer;
//   - x-NAME, the median over the rounds of the function's time divided by the
//     peer's time in the same round.
//
// A bound such as "at most 1.2x" is about the median of ten such figures:
//
//	go test -run '^$' -bench . -count 10 ./credential | tee figures
//	go run golang.org/x/perf/cmd/benchstat@latest figures
//
// No test asserts a time.
package benchpeer

import (
	"math"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

// Call is one operation. Calls of one function have different numbers i, which
// increase from 0. A Call that can run in parallel is safe for concurrent use.
type Call func(i int) error

// Peer is what a function is compared with.
type Peer struct {
	// Name is part of the units that are reported: it has no spaces.
	Name string
	Call Call
}

// Run compares ours with its peers. It fails b if a call returns an error.
func Run(b *testing.B, ours Call, peers ...Peer) {
	b.Helper()
	run(b, 1, ours, peers)
}

// RunParallel is [Run] with calls on GOMAXPROCS goroutines at a time. The times
// are those of a piece divided by all of its calls, as in
// [testing.B.RunParallel].
func RunParallel(b *testing.B, ours Call, peers ...Peer) {
	b.Helper()
	run(b, runtime.GOMAXPROCS(0), ours, peers)
}

func run(b *testing.B, workers int, ours Call, peers []Peer) {
	b.Helper()
	m, err := newMatch(workers, ours, peers)
	if err != nil {
		b.Fatal(err)
	}
	count, bytes, err := m.players[0].allocations()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs() // the lines below replace its figures, which are those of a whole round
	for b.Loop() {
		if err := m.play(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(count, "allocs/op")
	b.ReportMetric(bytes, "B/op")
	b.ReportMetric(m.time(0), "ns/op")
	for i, p := range peers {
		b.ReportMetric(m.time(i+1), p.Name+"-ns/op")
		b.ReportMetric(m.ratio(i+1), "x-"+p.Name)
	}
}

// piece is the least time of one turn: long compared with reading the clock,
// and short compared with the time slice of a scheduler.
const piece = 100 * time.Microsecond

// match is a comparison: ours is the first player.
type match struct {
	players []*player
	rounds  int
}

// player is one of the functions.
type player struct {
	call    Call
	workers int       // goroutines
	calls   int       // calls of each goroutine in one piece
	next    int       // number of the next call
	times   []float64 // ns for each call, by round
}

// newMatch finds how many calls make a piece, for each function.
func newMatch(workers int, ours Call, peers []Peer) (*match, error) {
	m := &match{players: []*player{{call: ours, workers: workers}}}
	for _, p := range peers {
		m.players = append(m.players, &player{call: p.Call, workers: workers})
	}
	for _, p := range m.players {
		if err := p.fit(); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// fit doubles the calls of a piece until the fastest of five pieces is long
// enough: a piece may take long because of other work.
func (p *player) fit() error {
	for p.calls = 1; ; p.calls *= 2 {
		fastest := time.Duration(math.MaxInt64)
		for range 5 {
			took, err := p.turn()
			if err != nil {
				return err
			}
			fastest = min(fastest, took)
		}
		if fastest >= piece {
			return nil
		}
	}
}

// play is one round.
func (m *match) play() error {
	for i := range m.players {
		p := m.players[(m.rounds+i)%len(m.players)]
		took, err := p.turn()
		if err != nil {
			return err
		}
		p.times = append(p.times, float64(took)/float64(p.calls*p.workers))
	}
	m.rounds++
	return nil
}

// turn makes the calls of one piece and returns how long they took.
func (p *player) turn() (took time.Duration, err error) {
	first := p.next
	p.next += p.calls * p.workers
	if p.workers == 1 {
		began := time.Now()
		err = p.work(first)
		return time.Since(began), err
	}
	var wg sync.WaitGroup
	errs := make([]error, p.workers)
	began := time.Now()
	for w := range p.workers {
		wg.Go(func() { errs[w] = p.work(first + w*p.calls) })
	}
	wg.Wait()
	took = time.Since(began)
	for _, err := range errs {
		if err != nil {
			return took, err
		}
	}
	return took, nil
}

// work makes one goroutine's calls of a piece.
func (p *player) work(first int) error {
	for i := range p.calls {
		if err := p.call(first + i); err != nil {
			return err
		}
	}
	return nil
}

// allocations returns the allocations of one call and their bytes, rounded down
// like those of [testing.BenchmarkResult]. It counts all goroutines.
func (p *player) allocations() (count, bytes float64, err error) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	n := max(p.calls, 100)
	var before, after runtime.MemStats
	for i := range n + 1 {
		if i == 1 { // the first call fills the caches of one processor
			runtime.ReadMemStats(&before)
		}
		if err := p.call(p.next); err != nil {
			return 0, 0, err
		}
		p.next++
	}
	runtime.ReadMemStats(&after)
	per := func(total uint64) float64 { return float64(total / uint64(n)) }
	return per(after.Mallocs - before.Mallocs), per(after.TotalAlloc - before.TotalAlloc), nil
}

// time returns the median time of a player's calls, in nanoseconds.
func (m *match) time(player int) float64 { return median(m.players[player].times) }

// ratio returns the median of our time divided by a player's.
func (m *match) ratio(player int) float64 {
	ratios := make([]float64, m.rounds)
	for i := range ratios {
		ratios[i] = m.players[0].times[i] / m.players[player].times[i]
	}
	return median(ratios)
}

// median returns the middle of values, or the mean of the two in the middle.
func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	if len(s) == 0 {
		return math.NaN()
	}
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}
