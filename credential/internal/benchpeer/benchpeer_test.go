package benchpeer_test

import (
	"errors"
	"flag"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskcred/taskcred/credential/internal/benchpeer"
)

// takes is an operation that takes d on the clock of a bubble.
func takes(d time.Duration) benchpeer.Call {
	return func(int) error { time.Sleep(d); return nil }
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{{[]float64{3}, 3}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 2, 100}, 3}} {
		if got := benchpeer.Median(c.in); got != c.want {
			t.Errorf("the median of %v is %v; want %v", c.in, got, c.want)
		}
	}
}

func TestRun_RatioIsThatOfTheTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		times, ratios, err := benchpeer.Measure(10, 1, takes(1500), benchpeer.Peer{Call: takes(1000)}, benchpeer.Peer{Call: takes(time.Millisecond)})
		if err != nil || !slices.Equal(times, []float64{1500, 1000, 1e6}) || !slices.Equal(ratios, []float64{1.5, 0.0015}) {
			t.Errorf("times %v, ratios %v, error %v; want 1500, 1000 and 1e6 ns, 1.5 and 0.0015", times, ratios, err)
		}
	})
}

// Four rounds in ten are spoilt: the figures are those of the others.
func TestRun_IgnoresSpoiltRounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		ours := func(int) error {
			if calls++; calls > 5 && calls%10 < 4 { // the first five find the length of a piece
				time.Sleep(time.Second)
			}
			time.Sleep(150 * time.Microsecond)
			return nil
		}
		times, ratios, err := benchpeer.Measure(10, 1, ours, benchpeer.Peer{Call: takes(100 * time.Microsecond)})
		if err != nil || times[0] != 150_000 || ratios[0] != 1.5 {
			t.Errorf("times %v, ratios %v, error %v; want 150000 ns and 1.5", times, ratios, err)
		}
	})
}

// A piece that other work makes long does not make the pieces short.
func TestRun_PiecesAreLongEnough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var numbers []int
		ours := func(i int) error {
			if numbers = append(numbers, i); i < 4 {
				time.Sleep(time.Second)
			}
			time.Sleep(time.Microsecond)
			return nil
		}
		var began int
		peer := func(int) error {
			if began == 0 {
				began = len(numbers) // the peer's first call comes after all of ours before the rounds
			}
			time.Sleep(time.Millisecond)
			return nil
		}
		if _, _, err := benchpeer.Measure(3, 1, ours, benchpeer.Peer{Call: peer}); err != nil {
			t.Fatal(err)
		}
		if got := (len(numbers) - began) / 3; got != 128 {
			t.Errorf("a piece has %d calls of a microsecond; want 128, the first power of two with 100 µs", got)
		}
		for i, n := range numbers {
			if i != n {
				t.Fatalf("call %d has number %d", i, n)
			}
		}
	})
}

func TestRun_TakesTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var order strings.Builder
		player := func(name string) benchpeer.Call {
			return func(int) error {
				order.WriteString(name)
				time.Sleep(time.Millisecond)
				return nil
			}
		}
		_, _, err := benchpeer.Measure(4, 1, player("a"), benchpeer.Peer{Call: player("b")}, benchpeer.Peer{Call: player("c")})
		if want := "aaaaabbbbbccccc" + "abc" + "bca" + "cab" + "abc"; err != nil || order.String() != want {
			t.Errorf("order %s, error %v; want %s", order.String(), err, want)
		}
	})
}

func TestRunParallel_UsesWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const workers = 4
		var mu sync.Mutex // guards the variables below
		seen, running, most := map[int]bool{}, 0, 0
		ours := func(i int) error {
			mu.Lock()
			if seen[i] {
				t.Errorf("two calls have number %d", i)
			}
			seen[i] = true
			running++
			most = max(most, running)
			mu.Unlock()
			time.Sleep(300 * time.Microsecond)
			mu.Lock()
			running--
			mu.Unlock()
			return nil
		}
		times, ratios, err := benchpeer.Measure(5, workers, ours, benchpeer.Peer{Call: takes(200 * time.Microsecond)})
		if err != nil || most != workers || times[0] != 75_000 || times[1] != 50_000 || ratios[0] != 1.5 {
			t.Errorf("%d at a time, times %v, ratios %v, error %v; want 4, 75000 and 50000 ns, 1.5", most, times, ratios, err)
		}
	})
}

// An error of any call, on any goroutine, ends the comparison.
func TestRun_Errors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		good := takes(time.Millisecond)
		for _, workers := range []int{1, 3} {
			for _, at := range []int{0, 5*workers + 1} { // the first five pieces find the length of a piece
				bad := func(i int) error {
					time.Sleep(time.Millisecond)
					if i == at {
						return broken
					}
					return nil
				}
				if _, _, err := benchpeer.Measure(9, workers, bad, benchpeer.Peer{Call: good}); err != broken {
					t.Errorf("%d goroutines, ours fails at call %d: %v", workers, at, err)
				}
				if _, _, err := benchpeer.Measure(9, workers, good, benchpeer.Peer{Call: bad}); err != broken {
					t.Errorf("%d goroutines, the peer fails at call %d: %v", workers, at, err)
				}
			}
		}
	})
}

var sink atomic.Pointer[[1024]byte]

func TestRun_Reports(t *testing.T) {
	benchtime := flag.Lookup("test.benchtime").Value
	defer benchtime.Set(benchtime.String())
	if err := benchtime.Set("5x"); err != nil {
		t.Fatal(err)
	}
	allocates := func(int) error { sink.Store(new([1024]byte)); return nil }
	for name, run := range map[string]func(*testing.B, benchpeer.Call, ...benchpeer.Peer){"Run": benchpeer.Run, "RunParallel": benchpeer.RunParallel} {
		r := testing.Benchmark(func(b *testing.B) {
			run(b, allocates, benchpeer.Peer{Name: "a", Call: func(int) error { return nil }}, benchpeer.Peer{Name: "b", Call: allocates})
		})
		if r.N != 5 {
			t.Errorf("%s: %d rounds; want 5", name, r.N)
		}
		for _, unit := range []string{"ns/op", "a-ns/op", "b-ns/op", "x-a", "x-b"} {
			if r.Extra[unit] <= 0 {
				t.Errorf("%s: %s is %v; want a positive figure", name, unit, r.Extra[unit])
			}
		}
		if r.Extra["allocs/op"] != 1 || r.Extra["B/op"] < 1024 {
			t.Errorf("%s: %v allocations and %v bytes; want 1 and 1024", name, r.Extra["allocs/op"], r.Extra["B/op"])
		}
	}
}
