#!/bin/sh
# Detect objects in an image, and print the result as JSON.
#
#   sh detect.sh https://SERVICE street.jpg
#   sh detect.sh https://SERVICE gs://uploads/cam1/07.jpg
#
# SERVICE is a service with ENDPOINTS=detect. Needs curl 7.76 and, for https, gcloud with an account
# that has the role roles/run.invoker on the service.
set -eu
url=$1/v1/detect image=$2
case $1 in
https:*) token=$(gcloud auth print-identity-token) ;;
*) token= ;; # the local stack needs none
esac
case $image in
gs://*)
  quoted=$(printf %s "$image" | sed 's/["\\]/\\&/g')
  set -- --header "Content-Type: application/json" --data "{\"uri\": \"$quoted\"}"
  ;;
*) set -- --header "Content-Type: application/octet-stream" --data-binary "@$image" ;;
esac
curl --silent --show-error --fail-with-body --retry 5 --max-time 60 \
  ${token:+--header "Authorization: Bearer $token"} "$@" "$url"
