// Command mutants weakens one check at a time and shows that the tests named
// for it fail. A test that fails for no weakened check proves nothing.
//
// The tree is not touched: each mutant is an overlay of one file.
package main

import (
	"flag"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

const usage = `usage: go run ./.ci/mutants [flags] [WORD]

Runs at the root of the repository. First the tests that the list names run on
the unchanged code, and must pass. Then each mutant of the list, or each that has
WORD in its description, its function or its tests, is compiled and its tests
run. It is noticed when each of the tests named for it fails. Other tests may
fail, too.

Fails when a mutant is not noticed, and when there is none to try.

`

var mutants = slices.Concat(scopes, identities, exchanges, proofs, credentials)

func main() {
	times := flag.Int("times", 1, "run the tests of each mutant `N` times; every run must notice it")
	parallel := flag.Int("p", runtime.NumCPU(), "try `N` mutants at a time")
	busy := flag.Int("busy", 0, "keep `N` processors busy meanwhile")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), usage)
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() > 1 || *times < 1 || *parallel < 1 || *busy < 0 {
		flag.Usage()
		os.Exit(2)
	}
	runtime.GOMAXPROCS(runtime.NumCPU() + *busy)
	for range *busy {
		go func() {
			for {
				_ = rand.Uint64()
			}
		}()
	}
	if !run(flag.Arg(0), *times, *parallel) {
		os.Exit(1)
	}
}

// run tries the mutants that word chooses, and reports whether there are any and
// all of them are noticed.
func run(word string, times, parallel int) bool {
	chosen := slices.DeleteFunc(slices.Clone(mutants), func(m mutant) bool { return !m.matches(word) })
	if len(chosen) == 0 {
		fmt.Fprintf(os.Stderr, "no mutant has %q in its description, its function or its tests\n", word)
		return false
	}
	began, missed := time.Now(), 0
	unbroken := testUnbroken(chosen, times, parallel)
	for i, v := range each(len(chosen), parallel, func(i int) verdict { return chosen[i].try(unbroken[chosen[i].tests()], times) }) {
		m, word := chosen[i], "ok  "
		if v.err != nil {
			word = "FAIL"
			missed++
		}
		fmt.Printf("%s %5.1fs %-56s %s %s\n", word, v.took.Seconds(), m.weakened, m.tests(), m.fails)
		if v.err != nil {
			fmt.Printf("\t%s\n", strings.ReplaceAll(v.err.Error(), "\n", "\n\t"))
		}
	}
	fmt.Printf("%d mutants, %d not noticed, %.0f seconds\n", len(chosen), missed, time.Since(began).Seconds())
	return missed == 0
}

// testUnbroken runs the tests that the mutants name on the unchanged code, and
// returns the outcomes for each directory.
func testUnbroken(all []mutant, times, parallel int) map[string]outcomes {
	named := map[string]names{}
	for _, m := range all {
		named[m.tests()] = append(named[m.tests()], m.fails...)
	}
	dirs := slices.Sorted(maps.Keys(named))
	by := map[string]outcomes{}
	for i, o := range each(len(dirs), parallel, func(i int) outcomes { return goTest(dirs[i], named[dirs[i]].tops(), "", times) }) {
		by[dirs[i]] = o
	}
	return by
}

// each calls do for every number below n, parallel calls at a time, and yields
// the results in order.
func each[T any](n, parallel int, do func(int) T) iter.Seq2[int, T] {
	return func(yield func(int, T) bool) {
		results, next := make([]chan T, n), make(chan int, n)
		for i := range n {
			results[i] = make(chan T, 1)
			next <- i
		}
		close(next)
		for range parallel {
			go func() {
				for i := range next {
					results[i] <- do(i)
				}
			}()
		}
		for i, r := range results {
			if !yield(i, <-r) {
				return
			}
		}
	}
}
