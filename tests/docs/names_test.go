// Package docs checks that the documents, and the comments in the code, speak of
// what there is: a file, a function or a test that was renamed or deleted fails here
// where it is still named.
package docs

import (
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const root = "../.."

// outside are names that documents put in backquotes and that are nobody's here, but the
// kernel's or a tool's. Those without a capital letter are not looked at: they may be
// system calls, commands, anything.
var outside = words(`COMMIT Cycle IOCB_CMD_FDSYNC NAME PAGEMAP_SCAN RWF_DSYNC forEachP`)

func words(s string) map[string]bool {
	m := make(map[string]bool)
	for _, w := range strings.Fields(s) {
		m[w] = true
	}
	return m
}

// tree is what there is.
type tree struct {
	names    map[string]bool   // identifiers, and words in strings: not those of comments
	files    map[string]bool   // by path below the root, and by base name
	comments map[string]string // of each Go file
}

var word = regexp.MustCompile(`[A-Za-z_][A-Za-z0-9_]*`)

func readTree(t *testing.T) *tree {
	t.Helper()
	tr := &tree{make(map[string]bool), make(map[string]bool), make(map[string]string)}
	add := func(text string) {
		for _, w := range word.FindAllString(text, -1) {
			tr.names[w] = true
		}
	}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Name() == ".git" {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		name, _ := filepath.Rel(root, path)
		tr.files[filepath.ToSlash(name)] = true
		tr.files[d.Name()] = true
		switch filepath.Ext(path) {
		case ".go":
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			tr.comments[name] = scan(text, add)
		case ".s":
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, line := range strings.Split(string(text), "\n") {
				code, _, _ := strings.Cut(line, "//")
				add(code)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// scan gives the names and strings of Go source to add, and returns its comments.
func scan(text []byte, add func(string)) (comments string) {
	var s scanner.Scanner
	file := token.NewFileSet().AddFile("", -1, len(text))
	s.Init(file, text, nil, scanner.ScanComments)
	var b strings.Builder
	for {
		_, tok, lit := s.Scan()
		switch tok {
		case token.EOF:
			return b.String()
		case token.IDENT, token.STRING:
			add(lit)
		case token.COMMENT:
			if strings.HasPrefix(lit, "//go:build") {
				add(lit)
			}
			b.WriteString(lit + "\n")
		}
	}
}

func documents(t *testing.T) map[string]string {
	t.Helper()
	names, err := filepath.Glob(root + "/docs/*.md")
	if err != nil || len(names) < 5 {
		t.Fatal(names, err)
	}
	all := make(map[string]string)
	for _, name := range append(names, root+"/README.md") {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all[filepath.Base(name)] = string(text)
	}
	return all
}

var (
	fenced  = regexp.MustCompile("(?s)```.*?```")
	inline  = regexp.MustCompile("`([^`]+)`")
	dotted  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*(\(.*\))?$`)
	goFile  = regexp.MustCompile(`\b[A-Za-z0-9][A-Za-z0-9_/]*\.go\b|[A-Za-z0-9_/]*_amd64\.s\b`)
	ourPath = regexp.MustCompile(`^(?:pager|prefetch|coro|uffd|cmd|tests|docs)/[A-Za-z0-9_./-]*$`)
)

// What a document puts in backquotes, if it has the form of a name, a file or a folder, is
// one here.
func TestDocumentsNameWhatExists(t *testing.T) {
	tr := readTree(t)
	checked := 0
	for doc, text := range documents(t) {
		for _, m := range inline.FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
			s := m[1]
			switch {
			case outside[s]:
			case ourPath.MatchString(s):
				if checked++; !tr.files[strings.TrimSuffix(s, "/")] && s != "docs/" {
					t.Errorf("%s: there is no %s", doc, s)
				}
			case goFile.FindString(s) == s:
				if checked++; !tr.files[s] {
					t.Errorf("%s: there is no file %s", doc, s)
				}
			case dotted.MatchString(s) && strings.ToLower(s) != s:
				s, _, _ = strings.Cut(s, "(")
				checked++
				if last := s[strings.LastIndex(s, ".")+1:]; !tr.names[last] {
					t.Errorf("%s: nothing here has the name %s", doc, s)
				}
			}
		}
	}
	if checked < 300 {
		t.Errorf("only %d names found in the documents", checked)
	}
}

// Comments speak of files that exist.
func TestCommentsNameFilesThatExist(t *testing.T) {
	tr := readTree(t)
	checked := 0
	for name, text := range tr.comments {
		for _, f := range goFile.FindAllString(text, -1) {
			f = strings.TrimPrefix(f, "/")
			if checked++; !tr.files[f] && !tr.files[filepath.ToSlash(filepath.Join(filepath.Dir(name), f))] {
				t.Errorf("%s: a comment speaks of %s, which does not exist", name, f)
			}
		}
	}
	if checked < 50 {
		t.Errorf("only %d names of files found in comments", checked)
	}
}

// testFlag is -run or -bench with its pattern, as documents have it in a command.
var testFlag = regexp.MustCompile(`-(run|bench)[ =]('[^']*'|[^\s` + "`" + `)]+)`)

// The tests and benchmarks that documents tell people to run exist.
func TestDocumentsRunWhatExists(t *testing.T) {
	var names []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				names = append(names, fn.Name.Name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for doc, text := range documents(t) {
		for _, line := range strings.Split(text, "\n") {
			for _, m := range testFlag.FindAllStringSubmatch(line, -1) {
				pattern, _, _ := strings.Cut(strings.Trim(m[2], "'"), "/")
				if outside[pattern] || pattern == "^$" || pattern == "xxx" || pattern == "." || strings.ContainsAny(pattern, "…<") || strings.Contains(line, "tests/mutation -run") {
					continue
				}
				re, err := regexp.Compile(pattern)
				if err != nil {
					t.Errorf("%s: -%s %s: %v", doc, m[1], m[2], err)
					continue
				}
				checked++
				found := false
				for _, n := range names {
					prefix := "Test"
					if m[1] == "bench" {
						prefix = "Benchmark"
					}
					found = found || strings.HasPrefix(n, prefix) && re.MatchString(n)
				}
				if !found {
					t.Errorf("%s: -%s %s is the name of nothing", doc, m[1], m[2])
				}
			}
		}
	}
	if checked < 20 {
		t.Errorf("only %d patterns found in the documents", checked)
	}
}
