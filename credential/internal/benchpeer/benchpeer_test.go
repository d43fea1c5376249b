package benchpeer_test

import (
	"errors"
	"flag"
	"runtime"
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

// rounds sets the rounds of the benchmarks in a test.
func rounds(t *testing.T, n string) {
	t.Helper()
	benchtime := flag.Lookup("test.benchtime").Value
	before := benchtime.String()
	if err := benchtime.Set(n); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = benchtime.Set(before) })
}

func TestRun_Reports(t *testing.T) {
	rounds(t, "1x") // of one round, each median is the figure of that round
	allocates := func(int) error { sink.Store(new([1024]byte)); return nil }
	for name, run := range map[string]func(*testing.B, benchpeer.Call, ...benchpeer.Peer){"Run": benchpeer.Run, "RunParallel": benchpeer.RunParallel} {
		r := testing.Benchmark(func(b *testing.B) {
			run(b, allocates, benchpeer.Peer{Name: "a", Call: func(int) error { return nil }}, benchpeer.Peer{Name: "b", Call: takes(10 * time.Millisecond)})
		})
		if r.N != 1 {
			t.Fatalf("%s: %d rounds; want 1", name, r.N)
		}
		for _, peer := range []string{"a", "b"} {
			ours, theirs, ratio := r.Extra["ns/op"], r.Extra[peer+"-ns/op"], r.Extra["x-"+peer]
			if ours <= 0 || theirs <= 0 || ratio != ours/theirs {
				t.Errorf("%s: ours takes %v ns, %s %v ns, and the ratio is %v", name, ours, peer, theirs, ratio)
			}
		}
		if least := 10e6 / float64(runtime.GOMAXPROCS(0)); r.Extra["b-ns/op"] < least {
			t.Errorf("%s: 10 ms of sleep took %v ns", name, r.Extra["b-ns/op"])
		}
		if r.Extra["allocs/op"] != 1 || r.Extra["B/op"] < 1024 {
			t.Errorf("%s: %v allocations and %v bytes; want 1 and 1024", name, r.Extra["allocs/op"], r.Extra["B/op"])
		}
	}
}

func TestRunParallel_CallsAtTheSameTime(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	rounds(t, "1x")
	began := [2]chan struct{}{make(chan struct{}), make(chan struct{})}
	meet := func(i int) error {
		if i > 1 {
			time.Sleep(time.Millisecond)
			return nil
		}
		close(began[i])
		select {
		case <-began[1-i]:
		case <-time.After(10 * time.Second):
			t.Errorf("call %d ended before call %d began", i, 1-i)
		}
		return nil
	}
	testing.Benchmark(func(b *testing.B) { benchpeer.RunParallel(b, meet) })
}
