// Go's net/http with a map behind a mutex: it parses, sums and answers 204.
package main

import (
	"fmt"
	"net/http"
	"os"
	"strconv"
	"sync"
)

func main() {
	var mutex sync.Mutex
	totals := map[string]int64{}

	http.HandleFunc("POST /increment", func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		mutex.Lock()
		defer mutex.Unlock()
		for key, values := range r.PostForm {
			for _, text := range values {
				value, err := strconv.ParseInt(text, 10, 64)
				if err != nil {
					http.Error(w, err.Error(), http.StatusBadRequest)
					return
				}
				totals[key] += value
			}
		}
		w.WriteHeader(http.StatusNoContent)
	})
	http.HandleFunc("GET /total", func(w http.ResponseWriter, _ *http.Request) {
		mutex.Lock()
		defer mutex.Unlock()
		var sum int64
		for _, total := range totals {
			sum += total
		}
		fmt.Fprint(w, sum)
	})

	fmt.Println(http.ListenAndServe("127.0.0.1:"+os.Args[1], nil))
}
