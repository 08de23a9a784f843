package main

import (
	"fmt"
	"path/filepath"
	"runtime"
)

// caller is the place in a section from which must or done was called.
func caller() string {
	_, file, line, _ := runtime.Caller(2)
	return fmt.Sprintf("at %s:%d", filepath.Base(file), line)
}
