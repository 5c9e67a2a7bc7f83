package main

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// docs/json.md has every field of what --json prints, and no other.
func TestJSONIsDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	parts := regexp.MustCompile(`(?m)^## (\w+)$`).Split(string(text), -1)
	if len(parts) != 4 {
		t.Fatalf("%d parts", len(parts))
	}
	for i, v := range []any{report{}, comparison{}, diagnosis{}} {
		want := map[string]bool{}
		jsonFields(reflect.TypeOf(v), want)
		if i == 1 {
			for _, m := range allMetrics() {
				want[m] = true
			}
		}
		got := map[string]bool{}
		for _, line := range strings.Split(parts[i+1], "\n") {
			if cells := strings.Split(line, "|"); len(cells) > 2 {
				for _, m := range regexp.MustCompile("`([a-z0-9_]+)`").FindAllStringSubmatch(cells[1], -1) {
					got[m[1]] = true
				}
			}
		}
		for name := range want {
			if !got[name] {
				t.Errorf("%T: %s is not in docs/json.md", v, name)
			}
		}
		for name := range got {
			if !want[name] {
				t.Errorf("%T: docs/json.md has %s", v, name)
			}
		}
	}
}

// jsonFields adds the names of all fields of t and what is in it.
func jsonFields(t reflect.Type, names map[string]bool) {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		jsonFields(t.Elem(), names)
	case reflect.Struct:
		for i := range t.NumField() {
			f := t.Field(i)
			if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" {
				names[name] = true
			} else if !f.Anonymous {
				continue
			}
			jsonFields(f.Type, names)
		}
	}
}

// allMetrics is what figures of a row there may be.
func allMetrics() []string {
	return []string{mOps, mMisses, mRatio, mP50, mP99, mMax, mCPU, mCPUOp, mSyscalls, mSwitches, mIPIs, mMachine, mAllocs,
		mThreads, mTicks, mReadAmp, mRSS, mTables, mCharged, mFaults, mOthers}
}
