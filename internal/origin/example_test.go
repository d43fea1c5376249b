package origin_test

import (
	"fmt"
	"net/url"

	"github.com/taskcred/taskcred/internal/origin"
)

func Example() {
	u, err := url.Parse("https://API.example.com:443/v1/refunds")
	if err != nil {
		panic(err)
	}
	fmt.Println(origin.Of(u), origin.IsSecure(u))
	// Output: https://api.example.com true
}
