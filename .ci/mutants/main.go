// Command mutants breaks one defence at a time and shows that exactly the tests
// that are named for it fail. A test that no broken defence fails is no test.
//
// The tree is not touched: each mutant is an overlay of one file.
package main

import (
	"flag"
	"fmt"
	"iter"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
)

const usage = `usage: go run ./.ci/mutants [WORD]

Runs at the root of the repository. First the tests that the list names run
unbroken, and must pass. Then each mutant of the list, or each that has WORD in
its description, its file or its tests, is compiled and its tests run. It is
noticed when each of the tests named for it fails, and no other: not those
beside them, and not the whole by a timeout or a panic.

Fails when one is not noticed, and when there is none to try.
`

var mutants = slices.Concat(general, bindings)

func main() {
	flag.Usage = func() { fmt.Fprint(flag.CommandLine.Output(), usage) }
	flag.Parse()
	if flag.NArg() > 1 {
		flag.Usage()
		os.Exit(2)
	}
	if !run(flag.Arg(0)) {
		os.Exit(1)
	}
}

// run tries the mutants that word chooses, and reports whether there are any and
// all of them are noticed.
func run(word string) bool {
	chosen := slices.DeleteFunc(slices.Clone(mutants), func(m mutant) bool { return !m.matches(word) })
	if len(chosen) == 0 {
		fmt.Fprintf(os.Stderr, "no mutant has %q in its description, its file or its tests\n", word)
		return false
	}
	unbroken := testUnbroken(chosen)
	missed := 0
	for i, err := range each(len(chosen), func(i int) error { return chosen[i].try(unbroken[chosen[i].dir()]) }) {
		m := chosen[i]
		verdict := "ok  "
		if err != nil {
			verdict = "FAIL"
			missed++
		}
		fmt.Printf("%s %-52s %s %s\n", verdict, m.defence, m.dir(), m.fails)
		if err != nil {
			fmt.Printf("\t%s\n", strings.ReplaceAll(err.Error(), "\n", "\n\t"))
		}
	}
	fmt.Printf("%d mutants, %d not noticed\n", len(chosen), missed)
	return missed == 0
}

// testUnbroken runs the tests that the mutants name, and returns the outcome
// for each directory. One that says nothing has no test that passed.
func testUnbroken(all []mutant) map[string]outcome {
	named := map[string]tests{}
	for _, m := range all {
		named[m.dir()] = append(named[m.dir()], m.fails...)
	}
	dirs := slices.Sorted(maps.Keys(named))
	outcomes := map[string]outcome{}
	for i, o := range each(len(dirs), func(i int) outcome {
		o, _ := goTest(dirs[i], named[dirs[i]].tops(), "")
		return o
	}) {
		outcomes[dirs[i]] = o
	}
	return outcomes
}

// each calls do for every number below n, as many at a time as there are
// processors, and yields the results in order.
func each[T any](n int, do func(int) T) iter.Seq2[int, T] {
	return func(yield func(int, T) bool) {
		results, next := make([]chan T, n), make(chan int, n)
		for i := range n {
			results[i] = make(chan T, 1)
			next <- i
		}
		close(next)
		for range runtime.NumCPU() {
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
