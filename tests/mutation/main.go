package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

func main() {
	var (
		only  = flag.String("run", "", "only mutations whose name matches this regular expression")
		quick = flag.Bool("quick", false, "only those that CI runs")
		docs  = flag.Bool("docs", false, "rewrite the rows of what is tried in docs/testing.md")
		verb  = flag.Bool("v", false, "print the output of every test")
		base  = flag.Bool("baseline", false, "run the named tests without any defect first")
		under = flag.String("exec", "", "run the tests under this program (go test -exec)")
		limit = flag.Duration("for", 0, "begin no further mutation after this time (0: no limit)")
	)
	flag.Parse()
	match, err := regexp.Compile(*only)
	if err != nil || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "usage: mutation [flags]; see -help:", err)
		os.Exit(2)
	}
	var list []mutation
	for _, m := range table {
		if match.MatchString(m.name) && (m.quick || !*quick) {
			list = append(list, m)
		}
	}
	if err := run(list, *base, *docs, *verb, *under, *limit); err != nil {
		fmt.Fprintln(os.Stderr, "mutation:", err)
		os.Exit(1)
	}
}

func run(list []mutation, baseline, docs, verbose bool, under string, limit time.Duration) error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "uffdpager-mutation-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if baseline {
		seen := map[string]bool{}
		for _, m := range list {
			if key := m.pkg + m.test + m.tags; !seen[key] {
				seen[key] = true
				if r := m.try(root, "", under); r.how != survived {
					return fmt.Errorf("%s in %s fails without any defect: %s\n%s", m.test, m.pkg, r.how, r.output)
				}
			}
		}
	}
	began := time.Now()
	var bad []string
	rows := map[string]string{}
	for i, m := range list {
		if limit > 0 && time.Since(began) > limit {
			fmt.Printf("the time is over: %d of %d mutations have been tried\n", i, len(list))
			break
		}
		r := m.check(root, dir, under)
		fmt.Printf("%-32s %-26s %5.1fs  %s\n", m.name, m.test, r.took.Seconds(), r.how)
		if r.evidence != "" {
			fmt.Printf("    %s\n", r.evidence)
		}
		if verbose || !r.good {
			fmt.Println(indent(r.output))
		}
		if !r.good {
			bad = append(bad, m.name+": "+r.how)
		}
		rows[m.name] = m.row(r)
	}
	if len(bad) > 0 {
		return fmt.Errorf("%d of %d defects were not caught as they must be:\n\t%s", len(bad), len(list), strings.Join(bad, "\n\t"))
	}
	fmt.Printf("%d defects, all caught\n", len(rows))
	if docs {
		return writeDocs(filepath.Join(root, "docs", "testing.md"), rows)
	}
	return nil
}

func moduleRoot() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("go list -m: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// overlay makes copies of the files that the mutation changes, with the defect,
// in dir, and returns the name of a file that tells go to read them instead of
// the originals (go help build, -overlay). The tree is not touched, and the
// build cache holds all that does not depend on the defect.
func (m mutation) overlay(root, dir string) (string, error) {
	changed := map[string][]byte{}
	for _, e := range m.edits {
		name := filepath.Join(root, filepath.FromSlash(e.file))
		data, ok := changed[name]
		if !ok {
			var err error
			if data, err = os.ReadFile(name); err != nil {
				return "", err
			}
		}
		if n := bytes.Count(data, []byte(e.old)); n != 1 {
			return "", fmt.Errorf("%s: the text to replace is there %d times:\n%s", e.file, n, e.old)
		}
		changed[name] = bytes.Replace(data, []byte(e.old), []byte(e.new), 1)
	}
	var list struct{ Replace map[string]string }
	list.Replace = map[string]string{}
	for name, data := range changed {
		copied := filepath.Join(dir, fmt.Sprintf("%s-%d.go", m.name, len(list.Replace)))
		if err := os.WriteFile(copied, data, 0o644); err != nil {
			return "", err
		}
		list.Replace[name] = copied
	}
	data, err := json.Marshal(list)
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, m.name+".json")
	return file, os.WriteFile(file, data, 0o644)
}

const (
	survived = "NOT CAUGHT"
	hung     = "hangs"
	crashed  = "crashes"
	asserted = "assertion"
	broken   = "DOES NOT BUILD"
)

// result is what became of one test run.
type result struct {
	how      string
	good     bool
	evidence string // the line that says so
	output   string
	took     time.Duration
}

// check applies the mutation, runs its test and judges.
func (m mutation) check(root, dir, under string) result {
	file, err := m.overlay(root, dir)
	if err != nil {
		return result{how: "DOES NOT APPLY: " + err.Error()}
	}
	r := m.try(root, file, under)
	for n := 2; r.how == survived && n <= tries; n++ { // of a race a single run proves nothing
		fmt.Printf("%-32s not caught at try %d of %d\n", m.name, n-1, tries)
		r = m.try(root, file, under)
	}
	r.good = r.how == asserted || r.how == crashed || r.how == hung && m.hang
	return r
}

// tries is how often a test may miss a defect before it counts as missed: many
// defects are races, or show when a shared machine does what it does seldom.
const tries = 3

// patience is how long a test may take, with its build before.
const patience = 90 * time.Second

// try runs the mutation's test with the overlay ("": none), under a program if
// one is given.
func (m mutation) try(root, overlay, under string) result {
	limit := patience
	if m.hang {
		limit = 25 * time.Second
	}
	args := []string{"test", "-vet=off", "-count=1", "-timeout", limit.String(), "-run", "^" + strings.ReplaceAll(m.test, "/", "$/^") + "$"}
	if m.tags != "" {
		args = append(args, "-tags", m.tags)
	}
	if overlay != "" {
		args = append(args, "-overlay", overlay)
	}
	if under != "" {
		args = append(args, "-exec", under)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit+10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", append(args, "./"+m.pkg)...)
	cmd.Dir = root
	cmd.WaitDelay = 5 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	began := time.Now()
	err := cmd.Run()
	r := result{output: out.String(), took: time.Since(began)}
	r.how, r.evidence = judge(r.output, err)
	return r
}

var (
	failLine  = regexp.MustCompile(`^\s+\w+_test\.go:(?:\d+:)? (.*)`)
	crashLine = regexp.MustCompile(`^\s*((?:panic|fatal error|unexpected fault address|SIG[A-Z]+): .*|pager: invariant: .*)`)
)

// judge says how a test ended, from its output.
func judge(output string, err error) (how, evidence string) {
	switch {
	case err == nil:
		return survived, ""
	case strings.Contains(output, "[build failed]"), strings.Contains(output, "[setup failed]"):
		return broken, ""
	}
	// What is found before something hangs is found.
	hangs := strings.Contains(output, "panic: test timed out") || strings.Contains(output, "the child hung")
	// A child's own words are further in than its parent's.
	sc := bufio.NewScanner(strings.NewReader(output))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		if m := crashLine.FindStringSubmatch(sc.Text()); m != nil && !strings.Contains(m[1], "test timed out") && !strings.Contains(m[1], "SIGQUIT") {
			return crashed, cut(m[1])
		}
		m := failLine.FindStringSubmatch(sc.Text())
		if m == nil || strings.Contains(m[1], "the child failed") || strings.Contains(m[1], "the child hung") || strings.HasPrefix(m[1], "seed: ") || strings.HasPrefix(m[1], "child:") {
			continue
		}
		if strings.Contains(output, "--- FAIL") {
			return asserted, cut(m[1])
		}
	}
	if hangs {
		return hung, ""
	}
	if strings.Contains(output, "--- FAIL") {
		return asserted, ""
	}
	return crashed, ""
}

func cut(s string) string {
	s = strings.TrimSpace(s)
	if r := []rune(s); len(r) > 110 {
		return string(r[:110]) + "…"
	}
	return s
}

func indent(s string) string {
	const most = 6000
	if len(s) > most {
		s = s[:most/2] + "\n[…]\n" + s[len(s)-most/2:]
	}
	return "    | " + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n    | ")
}

// row is the mutation's line of the table in docs/testing.md.
func (m mutation) row(r result) string {
	test := fmt.Sprintf("`%s` in `%s`", m.test, m.pkg)
	if m.tags != "" {
		test += ", tag `" + strings.TrimPrefix(m.tags, "uffdpager_") + "`"
	}
	return fmt.Sprintf("| %s | %s | %s | %s |", m.name, m.what, test, r.how)
}

const (
	tableBegins = "<!-- go run ./tests/mutation -docs writes from here -->\n"
	tableEnds   = "<!-- to here -->\n"
)

// writeDocs puts the rows of the table's mutations into the document: the new
// ones of those that have been tried, and of the others what it has.
func writeDocs(name string, rows map[string]string) error {
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(data), tableBegins)
	old, after, ok2 := strings.Cut(rest, tableEnds)
	if !ok || !ok2 {
		return fmt.Errorf("%s does not say where the table goes", name)
	}
	var b strings.Builder
	b.WriteString("\n| defect | what is wrong | the test that notices | how |\n|---|---|---|---|\n")
	for _, m := range table {
		row, tried := rows[m.name]
		if !tried {
			if _, row, tried = strings.Cut(old, "\n| "+m.name+" |"); !tried {
				continue // it has never been
			}
			row, _, _ = strings.Cut(row, "\n")
			row = "| " + m.name + " |" + row
		}
		b.WriteString(row + "\n")
	}
	b.WriteString("\n")
	return os.WriteFile(name, []byte(before+tableBegins+b.String()+tableEnds+after), 0o644)
}
