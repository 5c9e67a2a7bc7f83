// Command soak keeps the pager busy with everything the model test knows, for
// as long as you like: several pagers and regions, stores that fail, budgets
// that breathe, regions opened and closed; every byte is compared, and the
// process must not grow. A line of statistics every second goes to standard
// error.
//
//	go run ./tests/soak                     half a minute
//	go run ./tests/soak -for 8h
//	go run ./tests/soak -for 10m -race -seed 42
//	go run ./tests/soak -for 1h -tags uffdpager_invariants
//
// The exit status is that of the test behind it (tests/model, TestSoak), which
// names the seed to replay.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

func main() {
	lasts := flag.Duration("for", 30*time.Second, "how long")
	seed := flag.Uint64("seed", 0, "seed (0: a new one)")
	tags := flag.String("tags", "", "build tags")
	race := flag.Bool("race", false, "build with the race detector")
	flag.Parse()
	if flag.NArg() > 0 || *lasts <= 0 {
		fmt.Fprintln(os.Stderr, "usage: soak [flags]; see -help")
		os.Exit(2)
	}
	if err := run(*lasts, *seed, *tags, *race); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			os.Exit(1) // it has spoken
		}
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
}

func run(lasts time.Duration, seed uint64, tags string, race bool) error {
	dir, err := os.MkdirTemp("", "uffdpager-soak-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	bin := filepath.Join(dir, "model.test")
	args := []string{"test", "-c", "-o", bin, "-tags", tags}
	if race {
		args = append(args, "-race")
	}
	build := exec.Command("go", append(args, "github.com/uffdpager/uffdpager/tests/model")...)
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		return err
	}
	test := exec.Command(bin, "-test.run=^TestSoak$", "-test.v", "-test.timeout=0", "-soak="+lasts.String(), fmt.Sprintf("-seed=%d", seed))
	test.Stdout, test.Stderr = os.Stdout, os.Stderr
	return test.Run()
}
